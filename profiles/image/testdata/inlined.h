static inline int in_header(int a)
{
	asm volatile("nop");
	return a + 1;
}
