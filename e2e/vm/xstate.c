/*
 * Preloaded into linux.uml, so that it runs on processors with more registers than it knows of.
 *
 * User-mode Linux 6.12 keeps 2696 bytes of its processes' extended state (x87 to AVX-512 and PKRU) and gives them back with
 * PTRACE_SETREGSET. The host's kernel takes only the whole of what the processor has: where that is more (AMX: 11 KiB), it
 * answers EFAULT, and the guest dies with its first process. What UML lacks is the end of the buffer, all zero there: state
 * that was never used. A buffer longer than the state is cut by the kernel, so this helps everywhere and harms nowhere.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 16384

long ptrace(enum __ptrace_request request, ...)
{
	__builtin_va_list args;
	__builtin_va_start(args, request);
	long pid = __builtin_va_arg(args, int);
	void *address = __builtin_va_arg(args, void *);
	void *data = __builtin_va_arg(args, void *);
	__builtin_va_end(args);
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		/* the system call stores the word, the function returns it */
		long word;
		return syscall(SYS_ptrace, request, pid, address, &word) < 0 ? -1 : word;
	}
	struct iovec *given = data;
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE && given->iov_len < MOST) {
		static __thread char whole[MOST] __attribute__((aligned(64)));
		struct iovec state = { whole, MOST };
		memcpy(whole, given->iov_base, given->iov_len);
		return syscall(SYS_ptrace, request, pid, address, &state);
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
