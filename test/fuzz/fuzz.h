/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  What the fuzzers share.
 *
 * Each fuzzer is one file, compiled with the sources that it calls and with
 * backend.c, which stands for the rest of the server.  The headers are
 * PostgreSQL's own; functions that nothing here calls stay undefined.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_H
#define FUZZ_H

/* A property that has to hold; libFuzzer keeps the input if it does not. */
#define CHECK(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s, line %d: %s\n", __FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is taken from the front of an input; zeros behind its end. */
typedef struct FuzzInput
{
	const uint8_t *data;
	size_t		size;
} FuzzInput;

extern uint64 fuzz_number(FuzzInput *input, int bytes);
extern uint64 fuzz_below(FuzzInput *input, uint64 limit);

/* A copy of its own, so that a read beyond its end is noticed. */
extern char *fuzz_copy(const void *data, size_t length);
extern char *fuzz_string(const void *data, size_t length);

/* The checksum of secrets, a bit at a time. */
extern uint32 fuzz_crc32(const void *data, size_t length);

/* Frees what palloc() gave out; the end of an input. */
extern void fuzz_end(void);

#endif							/* FUZZ_H */
