/*
 * What PostgreSQL tells valgrind of its memory contexts and buffers
 * (USE_VALGRIND), told to AddressSanitizer instead: so it sees the end of a
 * chunk of palloc, a chunk that was freed, and a buffer that is not pinned.
 * The sanitizer knows nothing of undefined bytes.
 */
#ifndef ASAN_MEMCHECK_H
#define ASAN_MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define VALGRIND_MAKE_MEM_NOACCESS(addr, size) \
	ASAN_POISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MAKE_MEM_DEFINED(addr, size) \
	ASAN_UNPOISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MAKE_MEM_UNDEFINED(addr, size) \
	ASAN_UNPOISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MEMPOOL_ALLOC(context, addr, size) \
	ASAN_UNPOISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MEMPOOL_CHANGE(context, old, addr, size) \
	ASAN_UNPOISON_MEMORY_REGION((addr), (size))

/* Contexts wipe what is freed, and make it inaccessible then. */
#define VALGRIND_MEMPOOL_FREE(context, addr)				((void) 0)
#define VALGRIND_CREATE_MEMPOOL(context, redzones, zeroed)	((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(context)					((void) 0)
#define VALGRIND_MEMPOOL_TRIM(context, addr, size)			((void) 0)
#define VALGRIND_CHECK_MEM_IS_DEFINED(addr, size)			((void) 0)
#define VALGRIND_COUNT_ERRORS								0
#define VALGRIND_PRINTF(...)								((void) 0)
#define RUNNING_ON_VALGRIND									0

#endif							/* ASAN_MEMCHECK_H */
