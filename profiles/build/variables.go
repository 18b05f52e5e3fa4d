package build

import "github.com/hprobe/hprobe/profiles/isf"

// variables are those of Linux whose types BTF has not: it has only those of each CPU.
// They are what Volatility's plugins begin their ways at. A type is as the kernel's
// headers declare it, in all versions that hprobe knows; a variable or a type that a
// kernel has not is left out.
var variables = map[string]isf.Type{
	"init_task":                aStruct("task_struct"),
	"init_mm":                  aStruct("mm_struct"),
	"init_files":               aStruct("files_struct"),
	"init_fs":                  aStruct("fs_struct"),
	"init_cred":                aStruct("cred"),
	"init_nsproxy":             aStruct("nsproxy"),
	"init_net":                 aStruct("net"),
	"init_pid_ns":              aStruct("pid_namespace"),
	"init_user_ns":             aStruct("user_namespace"),
	"init_uts_ns":              aStruct("uts_namespace"),
	"modules":                  aStruct("list_head"),
	"net_namespace_list":       aStruct("list_head"),
	"super_blocks":             aStruct("list_head"),
	"tty_drivers":              aStruct("list_head"),
	"iomem_resource":           aStruct("resource"),
	"keyboard_notifier_list":   aStruct("atomic_notifier_head"),
	"map_idr":                  aStruct("idr"),
	"prog_idr":                 aStruct("idr"),
	"socket_file_ops":          aStruct("file_operations"),
	"sockfs_dentry_operations": aStruct("dentry_operations"),
	"module_kset":              pointerTo(aStruct("kset")),
	"prb":                      pointerTo(aStruct("printk_ringbuffer")),
	"log_buf":                  pointerTo(aBase("char")),
	"log_buf_len":              aBase("unsigned int"),
	"cap_last_cap":             aBase("int"),
	"page_offset_base":         aBase("long unsigned int"),
	"vmalloc_base":             aBase("long unsigned int"),
	"vmemmap_base":             aBase("long unsigned int"),
	"idt_table":                {Kind: isf.Array, Count: 256, Subtype: new(aStruct("gate_struct"))},
}

func aStruct(name string) isf.Type { return isf.Type{Kind: isf.Struct, Name: name} }

func aBase(name string) isf.Type { return isf.Type{Kind: isf.Base, Name: name} }

func pointerTo(t isf.Type) isf.Type { return isf.Type{Kind: isf.Pointer, Subtype: &t} }

// addVariables adds the types of those that are there.
func addVariables(out *isf.Builder) {
	for _, s := range out.Symbols {
		t, ok := variables[s.Name]
		if _, known := out.Vars[s.Name]; ok && !known && hasType(out, t) {
			out.Vars[s.Name] = t
		}
	}
}

func hasType(out *isf.Builder, t isf.Type) bool {
	for t.Subtype != nil {
		t = *t.Subtype
	}
	_, user := out.Users[t.Name]
	_, base := out.Base[t.Name]
	return user || base
}
