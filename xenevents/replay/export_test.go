package replay

// ReadPlain reads a recording that is not packed.
var ReadPlain = read
