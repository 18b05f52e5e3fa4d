#include "textflag.h"

// func spin(word *uint32, old uint32, n int) bool
TEXT ·spin(SB), NOSPLIT, $0-25
	MOVQ word+0(FP), AX
	MOVL old+8(FP), BX
	MOVQ n+16(FP), CX
look:
	MOVL (AX), DX
	CMPL DX, BX
	JNE  changed
	PAUSE
	DECQ CX
	JG   look
	MOVB $0, ret+24(FP)
	RET
changed:
	MOVB $1, ret+24(FP)
	RET
