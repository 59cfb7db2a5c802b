/*-------------------------------------------------------------------------
 *
 * hints.c
 *	  Where the rows of digests were last found, for all backends.
 *
 * Only hints: whoever follows one reads the row there, checks that its snapshot
 * sees it and compares the digest, and asks the index if that fails.  So the
 * table needs no lock and no invalidation, a hint may be torn by two that write
 * it at once, and what was found may be of another database.
 *
 * A hint is the root of the row's chain of updates, which an update that
 * changes no indexed column leaves in place, and the buffer of its page.  Four
 * share a line of the cache, and a digest's hint is in one line.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"

#include "apikeys.h"

#define WAYS 4

typedef struct Hint
{
	pg_atomic_uint64 first;		/* 32 bits of the digest, the buffer */
	pg_atomic_uint64 second;	/* block, offset, 16 more bits; 0: none */
} Hint;

typedef struct HintLine
{
	Hint		ways[WAYS];
} HintLine;

StaticAssertDecl(sizeof(HintLine) == 64, "four hints take 64 bytes");

static HintLine *lines;

/* As many hints as the meter has counts. */
static uint32
line_count(void)
{
	return pg_nextpower2_32(Max(ak_max_tracked_keys / WAYS, 1));
}

Size
ak_hints_shmem_size(void)
{
	/* With room to begin at a line of the cache. */
	return add_size(mul_size(line_count(), sizeof(HintLine)),
					PG_CACHE_LINE_SIZE);
}

void
ak_hints_shmem_init(bool found)
{
	bool		already;
	void	   *memory = ShmemInitStruct("apikeys hints", ak_hints_shmem_size(),
										 &already);

	lines = (HintLine *) TYPEALIGN(PG_CACHE_LINE_SIZE, memory);
	if (found)
		return;
	for (uint32 i = 0; i < line_count(); i++)
		for (int way = 0; way < WAYS; way++)
		{
			pg_atomic_init_u64(&lines[i].ways[way].first, 0);
			pg_atomic_init_u64(&lines[i].ways[way].second, 0);
		}
}

/* What tells a digest from others, here and in this database. */
typedef struct Mark
{
	HintLine   *line;
	uint32		bits;
	uint16		more_bits;
} Mark;

static Mark
mark_of(const uint8 *digest)
{
	uint64		start;
	uint64		hash;
	Mark		mark;

	memcpy(&start, digest, sizeof(start));
	hash = start ^ murmurhash32(MyDatabaseId);
	memcpy(&mark.bits, digest + sizeof(start), sizeof(mark.bits));
	mark.line = &lines[hash & (line_count() - 1)];
	mark.more_bits = hash >> 48;
	return mark;
}

static uint64
first_word(const Mark *mark, const AkHint *hint)
{
	return (uint64) mark->bits << 32 | (uint32) hint->buffer;
}

static uint64
second_word(const Mark *mark, const AkHint *hint)
{
	return (uint64) ItemPointerGetBlockNumber(&hint->root) << 32 |
		(uint64) ItemPointerGetOffsetNumber(&hint->root) << 16 | mark->more_bits;
}

/* Where a digest's row was last found, if that is known still. */
bool
ak_hint_find(const uint8 digest[AK_DIGEST_LEN], AkHint *hint)
{
	Mark		mark = mark_of(digest);

	for (int way = 0; way < WAYS; way++)
	{
		uint64		first = pg_atomic_read_u64(&mark.line->ways[way].first);
		uint64		second;

		if (first >> 32 != mark.bits)
			continue;
		second = pg_atomic_read_u64(&mark.line->ways[way].second);
		if (second == 0 || (second & 0xffff) != mark.more_bits)
			continue;
		ItemPointerSet(&hint->root, second >> 32, second >> 16 & 0xffff);
		hint->buffer = (Buffer) first;
		return ItemPointerIsValid(&hint->root);
	}
	return false;
}

/* Keep a hint in the place of the one before, else of any of its line. */
void
ak_hint_keep(const uint8 digest[AK_DIGEST_LEN], const AkHint *hint)
{
	static uint32 next_victim = 0;
	Mark		mark = mark_of(digest);
	Hint	   *place = NULL;

	for (int way = 0; way < WAYS && place == NULL; way++)
	{
		Hint	   *candidate = &mark.line->ways[way];

		if (pg_atomic_read_u64(&candidate->first) >> 32 == mark.bits ||
			pg_atomic_read_u64(&candidate->second) == 0)
			place = candidate;
	}
	if (place == NULL)
		place = &mark.line->ways[next_victim++ % WAYS];
	pg_atomic_write_u64(&place->first, first_word(&mark, hint));
	pg_atomic_write_u64(&place->second, second_word(&mark, hint));
}
