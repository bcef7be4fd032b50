// The kernels for GPUs, out of the files that nvcc has made: RINGDP_MACHINE_CODE and RINGDP_PORTABLE
// (KernelImage in image.h).

	.section .rodata
	.balign 64
machine_code:
	.incbin RINGDP_MACHINE_CODE
	.balign 64
portable:
	.incbin RINGDP_PORTABLE
	.byte 0

	.section .data.rel.ro, "aw"
	.balign 8
	.globl ringdp_kernel_image
	.hidden ringdp_kernel_image
	.type ringdp_kernel_image, %object
	.size ringdp_kernel_image, 16
ringdp_kernel_image:
	.quad machine_code
	.quad portable

	.section .note.GNU-stack, "", %progbits
