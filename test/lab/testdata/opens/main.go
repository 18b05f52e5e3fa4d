//go:build libvmi

// Command opens loads the libraries that it is told to, by name, and prints which
// driver it is to use, and its memory map.
package main

/*
#include <dlfcn.h>
#include <stdlib.h>
*/
import "C"

import (
	"fmt"
	"os"
	"unsafe"
)

func main() {
	for _, name := range os.Args[1:] {
		s := C.CString(name)
		if C.dlopen(s, C.RTLD_NOW) == nil {
			fmt.Println(C.GoString(C.dlerror()))
			os.Exit(1)
		}
		C.free(unsafe.Pointer(s))
	}
	fmt.Printf("driver %q\n", os.Getenv("HPROBE_DRIVER"))
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Stdout.Write(maps)
}
