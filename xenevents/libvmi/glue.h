//go:build libvmi

// The C half of the driver: LibVMI's functions, found at run time, and a coroutine
// that turns its callbacks round, so that Go asks for one event after the other.
#ifndef HPROBE_GLUE_H
#define HPROBE_GLUE_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include <libvmi/libvmi.h>
#include <libvmi/events.h>
#include <libvmi/slat.h>

#if VMI_EVENTS_VERSION != 9
#error "hprobe knows version 9 of LibVMI's events (LibVMI 0.15 has it): install another LibVMI, or build without -tags libvmi"
#endif

// The functions of LibVMI that the driver calls.
#define HP_FUNCTIONS(F) \
    F(vmi_init) F(vmi_destroy) F(vmi_events_version) F(vmi_get_vcpuregs) F(vmi_pause_vm) F(vmi_resume_vm) \
    F(vmi_mmap_guest_pfns) F(vmi_read_pa) F(vmi_get_max_physical_address) \
    F(vmi_register_event) F(vmi_clear_event) F(vmi_events_listen) F(vmi_are_events_pending) F(vmi_set_mem_event) \
    F(vmi_slat_control) F(vmi_slat_create) F(vmi_slat_destroy) F(vmi_slat_switch) F(vmi_slat_change_gfn)

struct hp_functions {
#define HP_POINTER(name) __typeof__(name) *name;
    HP_FUNCTIONS(HP_POINTER)
#undef HP_POINTER
    // libxenevtchn's, whose handles LibVMI takes.
    void *(*xenevtchn_open)(void *logger, unsigned flags);
    int (*xenevtchn_close)(void *handle);
    int (*xenevtchn_fd)(void *handle);
    int (*xenevtchn_notify)(void *handle, uint32_t port);
    int (*xenevtchn_pending)(void *handle);
    int (*xenevtchn_unmask)(void *handle, uint32_t port);
};

// hp is empty until hp_load returned NULL.
extern struct hp_functions hp;

// hp_load finds LibVMI. It returns why it can't, in memory that stays, or NULL. What it
// found it keeps: a second call does nothing. One thread at a time.
const char *hp_load(void);

// hp_open opens a running domain without its events; hp_open_file opens a memory dump. Both fail with
// the stage of vmi_init in *error.
vmi_instance_t hp_open(uint64_t domain, vmi_init_error_t *error);
vmi_instance_t hp_open_file(const char *path, vmi_init_error_t *error);

// LibVMI's functions by their pointers, which Go can't call. errno is Xen's answer, or 0.
#define HP_CALL(name, params, args) \
    static inline status_t hp_##name params { errno = 0; return hp.vmi_##name args; }
HP_CALL(destroy, (vmi_instance_t v), (v))
HP_CALL(get_vcpuregs, (vmi_instance_t v, registers_t *r, unsigned long vcpu), (v, r, vcpu))
HP_CALL(pause_vm, (vmi_instance_t v), (v))
HP_CALL(resume_vm, (vmi_instance_t v), (v))
HP_CALL(set_mem_event, (vmi_instance_t v, addr_t gfn, vmi_mem_access_t a, uint16_t view), (v, gfn, a, view))
HP_CALL(slat_control, (vmi_instance_t v, bool on), (v, on))
HP_CALL(slat_create, (vmi_instance_t v, uint16_t *view), (v, view))
HP_CALL(slat_destroy, (vmi_instance_t v, uint16_t view), (v, view))
HP_CALL(slat_switch, (vmi_instance_t v, uint16_t view), (v, view))
HP_CALL(slat_change_gfn, (vmi_instance_t v, uint16_t view, addr_t from, addr_t to), (v, view, from, to))
HP_CALL(read_pa, (vmi_instance_t v, addr_t at, size_t n, void *to, size_t *got), (v, at, n, to, got))

static inline uint64_t hp_max_address(vmi_instance_t v) { return hp.vmi_get_max_physical_address(v); }

// hp_map maps guest frames one after the other; NULL if one of them is not there. munmap undoes it.
void *hp_map(vmi_instance_t vmi, const uint64_t *gfns, size_t n);

// An event as LibVMI tells of it, in one shape for all kinds.
struct hp_event {
    uint16_t type; // VMI_EVENT_*
    uint16_t view;
    uint32_t vcpu;
    uint8_t paused; // the vCPU waits for the reply
    uint8_t access; // VMI_MEMACCESS_*
    uint8_t in_walk, gla_valid;
    uint8_t msr; // a register event is of an MSR
    uint8_t insn_len, int_type;
    uint32_t offset;
    uint32_t index; // control register, or MSR
    uint32_t leaf, subleaf;
    uint64_t gfn, gla, value, previous;
    const x86_registers_t *regs; // LibVMI's, until the reply
};

// What is replied. Registers are in the order of x86_registers_t up to r15, then rflags and rip.
struct hp_reply {
    uint32_t flags; // VMI_EVENT_RESPONSE_*
    uint16_t view, after;
    uint8_t set_regs, reinject;
    uint8_t insn[16];
    uint64_t regs[18];
};

// The versions of the ring that LibVMI reads (libvmi/driver/xen/xen_events.c, xen_init_events).
#define HP_OLDEST_RING 5
#define HP_NEWEST_RING 7

// Why hp_next came back.
enum { HP_NOTHING, HP_EVENT, HP_FAILED };

// An attached domain. Go reads event and unsent, and writes reply.
struct hp_monitor;
struct hp_monitor {
    vmi_instance_t vmi;
    struct hp_event event; // of the last hp_next that returned HP_EVENT
    struct hp_reply reply; // to it, for the next hp_next
    // A response is in the ring that Xen was not told of.
    uint8_t unsent;
    int woken; // hp_wake was called since hp_wait last returned 2

    uint8_t inside;    // LibVMI runs on the coroutine
    uint8_t suspended; // in the middle of a callback
    int why;
    void *here, *there; // stack pointers: of who called hp_next, and of the coroutine
    void *stack;
    void *channel; // libxenevtchn's handle
    int fd, wake;
    uint32_t port; // of the monitor's ring, in dom0
    emul_insn_t insn;
    vmi_event_t memory;
};

// hp_attach opens a domain with its monitor's ring, or returns NULL and why not.
struct hp_monitor *hp_attach(uint64_t domain, const char **why);
// hp_detach ends it: LibVMI answers what is left, with the empty reply. Every event must have been cleared.
void hp_detach(struct hp_monitor *m);

// hp_subscribe registers an event of a type; async and onchange are for registers: 0, 3 or 4 with index, or an MSR.
// NULL if LibVMI refuses. hp_clear unregisters it and frees it.
vmi_event_t *hp_subscribe(struct hp_monitor *m, uint16_t type, bool msr, uint32_t index, bool async, bool onchange, uint32_t vcpus);
status_t hp_clear(struct hp_monitor *m, vmi_event_t *e);
// hp_forget_memory takes away the handler of EPT violations. It comes before hp_detach, which would else reset every
// frame's access rights, one by one.
void hp_forget_memory(struct hp_monitor *m);

// hp_next gives LibVMI the reply to the last event, if it waits for one, and returns with the next.
int hp_next(struct hp_monitor *m);
// hp_notify tells Xen of responses.
int hp_notify(struct hp_monitor *m);
// hp_wait waits until there is an event (1), hp_wake was called (2, and maybe once more for nothing), or the time is
// over (0). Without events it waits for hp_wake alone. -1 is an error, in errno.
int hp_wait(struct hp_monitor *m, bool events, int microseconds);
// hp_wake makes a hp_wait return, the present one or the next. Any thread may call it.
void hp_wake(struct hp_monitor *m);

#endif
