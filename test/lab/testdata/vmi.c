/* vmi DOMAIN: loads LibVMI by name, as hprobe's driver does, and looks at a guest with it: how many vCPUs
 * it has, and the entry of vCPU 0's page-table root that maps the kernel. Its memory map says which
 * libraries it came to have.
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <libvmi/libvmi.h>
#include <stdio.h>
#include <stdlib.h>

static void *library;

static void *function(const char *name) {
  void *f = dlsym(library, name);
  if (f) return f;
  printf("%s\n", dlerror());
  exit(1);
}

static int fail(const char *what) {
  printf("%s failed\n", what);
  return 1;
}

static void print_file(const char *path) {
  char line[512];
  FILE *f = fopen(path, "r");
  if (!f) exit(fail(path));
  while (fgets(line, sizeof line, f)) fputs(line, stdout);
  fclose(f);
}

int main(int argc, char **argv) {
  uint64_t domain = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, cr3, entry;
  vmi_instance_t vmi;
  vmi_init_error_t error = 0;
  library = dlopen("libvmi.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    printf("%s\n", dlerror());
    return 1;
  }
  if (((typeof(&vmi_init)) function("vmi_init"))(&vmi, VMI_XEN, &domain, VMI_INIT_DOMAINID, NULL, &error) != VMI_SUCCESS) {
    printf("vmi_init failed: %d\n", error);
    return 1;
  }
  unsigned vcpus = ((typeof(&vmi_get_num_vcpus)) function("vmi_get_num_vcpus"))(vmi);
  if (((typeof(&vmi_get_vcpureg)) function("vmi_get_vcpureg"))(vmi, &cr3, CR3, 0) != VMI_SUCCESS) return fail("vmi_get_vcpureg");
  if (((typeof(&vmi_read_64_pa)) function("vmi_read_64_pa"))(vmi, (cr3 & ~0xfffull) + 511 * 8, &entry) != VMI_SUCCESS) return fail("vmi_read_64_pa");
  print_file("/proc/self/maps");
  if (((typeof(&vmi_destroy)) function("vmi_destroy"))(vmi) != VMI_SUCCESS) return fail("vmi_destroy");
  printf("ok: vcpus %u, cr3 %" PRIx64 ", kernel's entry %" PRIx64 "\n", vcpus, cr3, entry);
  return 0;
}
