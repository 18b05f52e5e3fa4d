/* loop ADDRESS: the least that a monitor over LibVMI does for a hit, to measure hprobe by. ADDRESS is a
 * virtual one of the guest's kernel, in hex. An int3 is put there, in the guest's own page; at each hit Xen
 * is told to emulate the instruction that was there. Nothing is captured or compared, and nothing hidden.
 *
 * It prints "armed", and on SIGTERM takes the int3 away and prints how many hits there were.
 */
#include <inttypes.h>
#include <libvmi/events.h>
#include <libvmi/libvmi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static uint64_t domain = 1, hits, others;
static addr_t at;
static emul_insn_t original = {.dont_free = 1};
static volatile sig_atomic_t ended;

static void end(int sig) { ended = sig; }

static void fail(const char *what) {
  fprintf(stderr, "%s failed\n", what);
  exit(1); /* before the int3 is there, or with a guest that is lost anyway */
}

static event_response_t hit(vmi_instance_t vmi, vmi_event_t *event) {
  if (event->interrupt_event.gla != at) { /* the guest's own */
    others++;
    event->interrupt_event.reinject = 1;
    return VMI_EVENT_RESPONSE_NONE;
  }
  hits++;
  event->interrupt_event.reinject = 0;
  event->emul_insn = &original;
  return VMI_EVENT_RESPONSE_EMULATE | VMI_EVENT_RESPONSE_SET_EMUL_INSN;
}

/* put writes the byte while no vCPU runs it. */
static void put(vmi_instance_t vmi, addr_t where, uint8_t byte) {
  if (vmi_pause_vm(vmi) != VMI_SUCCESS) fail("vmi_pause_vm");
  if (vmi_write_8_pa(vmi, where, &byte) != VMI_SUCCESS) fail("vmi_write_8_pa");
  /* An event that is still in the ring at the end is of the byte that was there. */
  while (vmi_are_events_pending(vmi) > 0)
    if (vmi_events_listen(vmi, 0) != VMI_SUCCESS) fail("vmi_events_listen");
  if (vmi_resume_vm(vmi) != VMI_SUCCESS) fail("vmi_resume_vm");
}

int main(int argc, char **argv) {
  vmi_instance_t vmi;
  vmi_init_error_t error = 0;
  vmi_event_t int3 = {0};
  uint64_t root;
  addr_t where;
  struct sigaction act = {.sa_handler = end};
  sigaction(SIGTERM, &act, NULL);
  sigaction(SIGINT, &act, NULL);
  if (argc != 2 || (at = strtoull(argv[1], NULL, 16)) == 0) {
    fprintf(stderr, "usage: loop ADDRESS\n");
    return 2;
  }
  if (vmi_init(&vmi, VMI_XEN, &domain, VMI_INIT_DOMAINID | VMI_INIT_EVENTS, NULL, &error) != VMI_SUCCESS) {
    fprintf(stderr, "vmi_init failed: %d\n", error);
    return 1;
  }
  if (vmi_init_paging(vmi, 0) == VMI_PM_UNKNOWN) fail("vmi_init_paging");
  /* The kernel is mapped by whichever root is in use, where there is no KPTI. */
  if (vmi_get_vcpureg(vmi, &root, CR3, 0) != VMI_SUCCESS) fail("vmi_get_vcpureg");
  if (vmi_pagetable_lookup(vmi, root, at, &where) != VMI_SUCCESS) fail("vmi_pagetable_lookup");
  if (vmi_read_pa(vmi, where, sizeof original.data, original.data, NULL) != VMI_SUCCESS) fail("vmi_read_pa");
  SETUP_INTERRUPT_EVENT(&int3, hit);
  if (vmi_register_event(vmi, &int3) != VMI_SUCCESS) fail("vmi_register_event");
  put(vmi, where, 0xcc);
  printf("armed\n");
  fflush(stdout);
  while (!ended)
    if (vmi_events_listen(vmi, 500) != VMI_SUCCESS) fail("vmi_events_listen");
  put(vmi, where, original.data[0]);
  vmi_destroy(vmi);
  printf("hits %" PRIu64 " others %" PRIu64 "\n", hits, others);
  return 0;
}
