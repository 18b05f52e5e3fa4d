//go:build libvmi

#define _GNU_SOURCE
#include "glue.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct hp_functions hp;

static char reason[512];

static void *find(void *lib, const char *name)
{
    void *f = dlsym(lib, name);
    if (f == NULL)
        snprintf(reason, sizeof reason, "the installed LibVMI is too old: it has no %s; hprobe needs LibVMI 0.15 or later", name);
    return f;
}

static void *open_library(const char *first, const char *second)
{
    void *lib = dlopen(first, RTLD_NOW | RTLD_LOCAL);
    if (lib != NULL) return lib;
    snprintf(reason, sizeof reason, "%s", dlerror());
    return dlopen(second, RTLD_NOW | RTLD_LOCAL);
}

const char *hp_load(void)
{
    static int done;
    struct hp_functions found = {0};
    if (done) return NULL;
    void *vmi = open_library("libvmi.so.0", "libvmi.so");
    if (vmi == NULL) return reason;
    // LibVMI takes an event channel handle of its caller's. Xen keeps this library's version.
    void *channel = open_library("libxenevtchn.so.1", "libxenevtchn.so");
    if (channel == NULL) {
        dlclose(vmi);
        return reason;
    }
#define FIND(name) if ((found.name = find(vmi, #name)) == NULL) goto no;
    HP_FUNCTIONS(FIND)
#undef FIND
#define FIND(name) if ((found.name = find(channel, #name)) == NULL) goto no;
    FIND(xenevtchn_open) FIND(xenevtchn_close) FIND(xenevtchn_fd) FIND(xenevtchn_notify)
    FIND(xenevtchn_pending) FIND(xenevtchn_unmask)
#undef FIND
    if (found.vmi_events_version() != VMI_EVENTS_VERSION) {
        snprintf(reason, sizeof reason, "the installed LibVMI has version %u of its events, and hprobe was built for %u: install the LibVMI that it was built with, or build it anew",
                 found.vmi_events_version(), VMI_EVENTS_VERSION);
        goto no;
    }
    hp = found;
    done = 1;
    return NULL;
no:
    dlclose(channel);
    dlclose(vmi);
    return reason;
}

vmi_instance_t hp_open(uint64_t domain, vmi_init_error_t *error)
{
    vmi_instance_t vmi = NULL;
    *error = VMI_INIT_ERROR_NONE;
    if (hp.vmi_init(&vmi, VMI_XEN, &domain, VMI_INIT_DOMAINID, NULL, error) != VMI_SUCCESS) return NULL;
    return vmi;
}

vmi_instance_t hp_open_file(const char *path, vmi_init_error_t *error)
{
    vmi_instance_t vmi = NULL;
    *error = VMI_INIT_ERROR_NONE;
    if (hp.vmi_init(&vmi, VMI_FILE, path, VMI_INIT_DOMAINNAME, NULL, error) != VMI_SUCCESS) return NULL;
    return vmi;
}

#define MOST_FRAMES 64

void *hp_map(vmi_instance_t vmi, const uint64_t *gfns, size_t n)
{
    unsigned long pfns[MOST_FRAMES];
    void *at[MOST_FRAMES];
    if (n == 0 || n > MOST_FRAMES) return NULL;
    for (size_t i = 0; i < n; i++) pfns[i] = gfns[i];
    return hp.vmi_mmap_guest_pfns(vmi, pfns, n, PROT_READ | PROT_WRITE, at) == VMI_SUCCESS ? at[0] : NULL;
}

// The coroutine. LibVMI calls a function for each event and sends what it returns: who wants the reply later can't
// have it. So its loop runs on a stack of its own, and the callback switches back to who called hp_next; the reply
// switches into the callback again. Nothing of Go's runs on that stack.

// The System V ABI's callee-saved registers; control words (MXCSR, x87) are never changed here or there.
void hp_switch(void **from, void *to);
__asm__(".text\n"
        ".type hp_switch,@function\n"
        ".globl hp_switch\n"
        ".hidden hp_switch\n"
        "hp_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        ".size hp_switch, .-hp_switch\n");

#define STACK (256 << 10)

static __thread struct hp_monitor *starting; // who the coroutine is for, when it first runs

static void body(void)
{
    struct hp_monitor *m = starting;
    for (;;) {
        m->why = hp.vmi_events_listen(m->vmi, 0) == VMI_SUCCESS ? HP_NOTHING : HP_FAILED;
        hp_switch(&m->there, m->here);
    }
}

static bool make_stack(struct hp_monitor *m)
{
    m->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (m->stack == MAP_FAILED) {
        m->stack = NULL;
        return false;
    }
    if (mprotect(m->stack, 4096, PROT_NONE) != 0) return false; // who runs over the end faults
    void **sp = (void **) ((char *) m->stack + STACK);
    *--sp = NULL;          // body's return address: it has none
    *--sp = (void *) body; // where hp_switch returns to; the stack is aligned there as after a call
    sp -= 6;               // and what it pops before
    memset(sp, 0, 6 * sizeof *sp);
    m->there = sp;
    return true;
}

static void describe(struct hp_monitor *m, vmi_event_t *e)
{
    struct hp_event *to = &m->event;
    to->type = e->type;
    to->view = e->slat_id;
    to->vcpu = e->vcpu_id;
    to->paused = 1;
    to->access = to->in_walk = to->gla_valid = to->msr = to->insn_len = to->int_type = 0;
    to->offset = to->index = to->leaf = to->subleaf = 0;
    to->gfn = to->gla = to->value = to->previous = 0;
    to->regs = e->x86_regs;
    switch (e->type) {
    case VMI_EVENT_INTERRUPT:
        to->gfn = e->interrupt_event.gfn;
        to->insn_len = e->interrupt_event.insn_length;
        to->int_type = 6; // Xen tells of software exceptions alone: HVMOP_TRAP_sw_exc
        break;
    case VMI_EVENT_MEMORY:
        to->gfn = e->mem_event.gfn;
        to->offset = e->mem_event.offset;
        to->gla = e->mem_event.gla;
        to->access = e->mem_event.out_access;
        to->in_walk = e->mem_event.gptw;
        to->gla_valid = e->mem_event.gla_valid;
        e->mem_event.gptw = e->mem_event.gla_valid = 0; // LibVMI sets them, and never takes them back
        break;
    case VMI_EVENT_SINGLESTEP:
        to->gfn = e->ss_event.gfn;
        break;
    case VMI_EVENT_REGISTER:
        to->msr = e->reg_event.reg == MSR_ANY;
        to->index = e->reg_event.reg == CR0 ? 0 : e->reg_event.reg == CR3 ? 3 : e->reg_event.reg == CR4 ? 4 : e->reg_event.msr;
        to->value = e->reg_event.value;
        to->previous = e->reg_event.previous;
        to->paused = !e->reg_event.async;
        break;
    case VMI_EVENT_CPUID:
        to->insn_len = e->cpuid_event.insn_length;
        to->leaf = e->cpuid_event.leaf;
        to->subleaf = e->cpuid_event.subleaf;
        break;
    case VMI_EVENT_DEBUG_EXCEPTION:
        to->gfn = e->debug_event.gfn;
        to->insn_len = e->debug_event.insn_length;
        to->int_type = e->debug_event.type;
        break;
    }
}

static event_response_t respond(struct hp_monitor *m, vmi_event_t *e)
{
    const struct hp_reply *r = &m->reply;
    if (e->type == VMI_EVENT_INTERRUPT) e->interrupt_event.reinject = r->reinject;
    if (e->type == VMI_EVENT_DEBUG_EXCEPTION) e->debug_event.reinject = r->reinject;
    e->slat_id = r->view;
    e->next_slat_id = r->after;
    if (r->set_regs) {
        x86_registers_t *x = e->x86_regs;
        memcpy(&x->rax, r->regs, 16 * sizeof r->regs[0]); // up to r15
        x->rflags = r->regs[16];
        x->rip = r->regs[17];
    }
    if (r->flags & VMI_EVENT_RESPONSE_SET_EMUL_INSN) {
        memcpy(m->insn.data, r->insn, sizeof r->insn);
        m->insn.dont_free = 1;
        e->emul_insn = &m->insn; // in place of the registers
    }
    m->unsent = 1;
    return r->flags;
}

static event_response_t on_event(vmi_instance_t vmi, vmi_event_t *e)
{
    struct hp_monitor *m = e->data;
    (void) vmi;
    describe(m, e);
    memset(&m->reply, 0, sizeof m->reply);
    if (m->inside) {
        m->why = HP_EVENT;
        m->suspended = 1;
        hp_switch(&m->there, m->here);
        m->suspended = 0;
    } else if (e->type == VMI_EVENT_CPUID) { // vmi_destroy empties the ring: what was done must not be done again
        e->x86_regs->rip += e->cpuid_event.insn_length;
        return VMI_EVENT_RESPONSE_SET_REGISTERS;
    }
    return respond(m, e);
}

int hp_next(struct hp_monitor *m)
{
    if (!m->suspended && hp.vmi_are_events_pending(m->vmi) == 0) return HP_NOTHING;
    starting = m;
    m->inside = 1;
    hp_switch(&m->here, m->there);
    m->inside = 0;
    if (m->why == HP_NOTHING) m->unsent = 0; // LibVMI tells Xen at the end of its loop
    return m->why;
}

int hp_notify(struct hp_monitor *m)
{
    m->unsent = 0;
    return hp.xenevtchn_notify(m->channel, m->port);
}

static int woken(struct hp_monitor *m) { return __atomic_load_n(&m->woken, __ATOMIC_RELAXED); }

int hp_wait(struct hp_monitor *m, bool events, int microseconds)
{
    struct pollfd p[2] = {{events ? m->fd : -1, POLLIN, 0}, {m->wake, POLLIN, 0}};
    struct timespec limit = {microseconds / 1000000, microseconds % 1000000 * 1000L}, now = {0};
    if (ppoll(p, 2, woken(m) ? &now : &limit, NULL) < 0) return errno == EINTR ? 0 : -1;
    if (p[0].revents) {
        // It tells of the next event again. LibVMI would do this when its loop is over, and till then nobody could sleep.
        int port = hp.xenevtchn_pending(m->channel);
        if (port < 0 || hp.xenevtchn_unmask(m->channel, port) != 0) return -1;
    }
    if (p[1].revents || woken(m)) {
        uint64_t n;
        __atomic_store_n(&m->woken, 0, __ATOMIC_SEQ_CST);
        if (read(m->wake, &n, sizeof n) < 0 && errno != EAGAIN) return -1;
        return 2;
    }
    return p[0].revents != 0;
}

void hp_wake(struct hp_monitor *m)
{
    uint64_t one = 1;
    __atomic_store_n(&m->woken, 1, __ATOMIC_SEQ_CST);
    if (write(m->wake, &one, sizeof one) < 0) return; // full of wakes: it wakes
}

static vmi_event_t *new_event(struct hp_monitor *m, vmi_event_t *e, uint16_t type)
{
    e->version = VMI_EVENTS_VERSION;
    e->type = type;
    e->data = m;
    e->callback = on_event;
    return e;
}

vmi_event_t *hp_subscribe(struct hp_monitor *m, uint16_t type, bool msr, uint32_t index, bool async, bool onchange, uint32_t vcpus)
{
    vmi_event_t *e = calloc(1, sizeof *e);
    if (e == NULL) return NULL;
    new_event(m, e, type);
    switch (type) {
    case VMI_EVENT_INTERRUPT:
        e->interrupt_event.intr = INT3;
        e->interrupt_event.reinject = -1;
        break;
    case VMI_EVENT_SINGLESTEP: // handlers for all, and none is stepped yet
        for (uint32_t v = 0; v < vcpus && v < MAX_SINGLESTEP_VCPUS; v++) e->ss_event.vcpus |= 1u << v;
        break;
    case VMI_EVENT_REGISTER:
        e->reg_event.reg = msr ? MSR_ANY : index == 0 ? CR0 : index == 3 ? CR3 : CR4;
        e->reg_event.msr = msr ? index : 0;
        e->reg_event.in_access = VMI_REGACCESS_W;
        e->reg_event.async = async;
        e->reg_event.onchange = onchange;
        break;
    }
    if (hp.vmi_register_event(m->vmi, e) == VMI_SUCCESS) return e;
    int why = errno;
    free(e);
    errno = why;
    return NULL;
}

status_t hp_clear(struct hp_monitor *m, vmi_event_t *e)
{
    status_t ok = hp.vmi_clear_event(m->vmi, e, NULL);
    if (ok == VMI_SUCCESS) free(e);
    return ok;
}

void hp_forget_memory(struct hp_monitor *m) { hp.vmi_clear_event(m->vmi, &m->memory, NULL); }

// find_port finds the ring's port, which LibVMI keeps to itself: of all ports it is the one that this handle has, and
// to notify it once for nothing does no harm (linux/drivers/xen/evtchn.c, IOCTL_EVTCHN_NOTIFY: ENOTCONN for others').
static bool find_port(struct hp_monitor *m)
{
    for (m->port = 1; m->port < 1 << 17; m->port++) // FIFO channels: EVTCHN_FIFO_NR_CHANNELS
        if (hp.xenevtchn_notify(m->channel, m->port) == 0) return true;
    return false;
}

struct hp_monitor *hp_attach(uint64_t domain, const char **why)
{
    vmi_init_error_t error = VMI_INIT_ERROR_NONE;
    struct hp_monitor *m = calloc(1, sizeof *m);
    *why = "no memory";
    if (m == NULL) return NULL;
    m->wake = -1;
    if (!make_stack(m)) goto no;
    if ((m->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0) goto no;
    *why = "no event channel: is this dom0, and /dev/xen/evtchn there?";
    if ((m->channel = hp.xenevtchn_open(NULL, 0)) == NULL) goto no;
    m->fd = hp.xenevtchn_fd(m->channel);

    uint8_t data[sizeof(vmi_init_data_t) + sizeof(vmi_init_data_entry_t)] __attribute__((aligned(8))) = {0};
    vmi_init_data_t *init = (vmi_init_data_t *) data;
    init->count = 1;
    init->entry[0].type = VMI_INIT_DATA_XEN_EVTCHN;
    init->entry[0].data = m->channel;
    *why = "LibVMI's vmi_init with events failed (what it printed says more)";
    if (hp.vmi_init(&m->vmi, VMI_XEN, &domain, VMI_INIT_DOMAINID | VMI_INIT_EVENTS, init, &error) != VMI_SUCCESS) {
        m->vmi = NULL;
        goto no;
    }
    *why = "the event channel of the monitor ring is not to be found";
    if (!find_port(m)) goto no;
    // One handler for all EPT violations; it changes nothing in the guest.
    new_event(m, &m->memory, VMI_EVENT_MEMORY);
    m->memory.mem_event.generic = 1;
    m->memory.mem_event.gfn = ~0ULL;
    m->memory.mem_event.in_access = VMI_MEMACCESS_RWX;
    *why = "LibVMI takes no handler of EPT violations";
    if (hp.vmi_register_event(m->vmi, &m->memory) == VMI_SUCCESS) return m;
no:
    hp_detach(m);
    return NULL;
}

void hp_detach(struct hp_monitor *m)
{
    if (m->vmi != NULL) hp.vmi_destroy(m->vmi);
    if (m->channel != NULL) hp.xenevtchn_close(m->channel);
    if (m->wake >= 0) close(m->wake);
    if (m->stack != NULL) munmap(m->stack, STACK);
    free(m);
}
