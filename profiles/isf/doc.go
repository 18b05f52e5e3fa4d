// Package isf reads and writes symbols and types of a kernel or a binary in
// Volatility 3's Intermediate Symbol Format (ISF).
//
// Read takes the schemas 4.0 to 6.x, plain or compressed with xz, gzip or
// bzip2; Write makes schema 6.2. WriteCache and ReadCache are a private binary
// form of the same content that opens in milliseconds.
//
// What hprobe keeps beyond the schema is written so that Volatility accepts and
// ignores it:
//
//   - The prototype of function f is the user type "f()": one field for each
//     argument, in order, at offsets 0, 8, 16, …; the result is the field
//     "return" after them, and the field "..." says that more may follow.
//   - Further addresses of a symbol name are symbols "name@address" (in
//     hexadecimal) whose linkage_name is the name. ISF has one address for each
//     name; a kernel has hundreds of static functions that share theirs.
//   - The constant data of __start_notes is the kernel's ELF notes, where its
//     build id is.
//
// A Profile never changes once it was made, so any number of goroutines may use
// it. Files are not trusted: every length and depth has a bound, and what is
// wrong is reported with its JSON path.
package isf
