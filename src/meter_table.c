/*-------------------------------------------------------------------------
 *
 * meter_table.c
 *	  Where the counts are: a hash table of fixed size in shared memory.
 *
 * A fixed array of entries, found through buckets that are split into
 * partitions by subject.  An entry belongs to its subject's partition and is
 * read and written under that partition's lock only; the free list has a
 * spinlock of its own.  What is durable or of no account can be evicted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"

#include "meter.h"

/*
 * How many entries an eviction looks at before it takes one that was used
 * lately, and before it gives up for now, if that is not all.
 */
#define EVICTION_PATIENCE 4096
#define EVICTION_LOOKS 250000

#ifdef __GNUC__
#define prefetch(address) __builtin_prefetch(address)
#else
#define prefetch(address) ((void) (address))
#endif

/* What the hash table needs of its own, beside the entries. */
typedef struct MeterTable
{
	uint32		buckets_per_partition;	/* a power of two */
	uint32		removed[AK_PARTITIONS]; /* removals, so that a loader can tell
										 * whether its row is still the last */
	uint32		buckets[FLEXIBLE_ARRAY_MEMBER];
} MeterTable;

static MeterTable *table;

static uint32
buckets_per_partition(void)
{
	return pg_nextpower2_32(Max(ak_max_tracked_keys / AK_PARTITIONS, 1));
}

static Size
table_size(void)
{
	return add_size(offsetof(MeterTable, buckets),
					mul_size(mul_size(buckets_per_partition(), AK_PARTITIONS),
							 sizeof(uint32)));
}

static Size
entries_size(void)
{
	return mul_size(ak_max_tracked_keys, sizeof(MeterEntry));
}

Size
ak_meter_shmem_size(void)
{
	return add_size(table_size(), entries_size());
}

void
ak_meter_shmem_init(bool found)
{
	bool		already;

	table = ShmemInitStruct("apikeys meter", table_size(), &already);
	ak_shared->entries = ShmemInitStruct("apikeys counts", entries_size(),
										 &already);
	if (found)
		return;

	table->buckets_per_partition = buckets_per_partition();
	memset(table->removed, 0, sizeof(table->removed));
	for (uint32 i = 0; i < table->buckets_per_partition * AK_PARTITIONS; i++)
		table->buckets[i] = AK_NONE;
	memset(ak_shared->entries, 0, entries_size());
	for (int i = 0; i < ak_max_tracked_keys; i++)
		ak_shared->entries[i].next = i + 1 < ak_max_tracked_keys ? i + 1 : AK_NONE;
	ak_shared->free_entry = 0;
}

static uint64
subject_hash(const MeterKey *key)
{
	return hash_bytes_extended(key->subject_id.data, UUID_LEN, 0);
}

static int
partition_of(const MeterKey *key)
{
	return subject_hash(key) % AK_PARTITIONS;
}

/*
 * How many entries of a key's partition have been removed: a loader can tell
 * whether what it read is still the last word.  The caller holds the partition.
 */
uint32
ak_entries_removed(const MeterKey *key)
{
	return table->removed[partition_of(key)];
}

LWLock *
ak_partition_lock(const MeterKey *key)
{
	return &ak_shared->partitions[partition_of(key)].lock;
}

/*
 * The subject chooses the partition, and the bucket in it, so that its rates
 * are found with whatever count they are.  It has few counts, but may have many
 * requests: these have buckets of their own.
 */
static uint32 *
bucket_of(const MeterKey *key)
{
	uint64		subject = subject_hash(key);
	uint64		request = key->period == AK_REQUEST ? key->period_start : 0;
	uint64		rest = hash_combine64(subject, request ^ key->generation);

	return &table->buckets[(subject % AK_PARTITIONS) *
						   table->buckets_per_partition +
						   (rest & (table->buckets_per_partition - 1))];
}

static uint32 *
bucket_of_counts(const pg_uuid_t *key_id)
{
	MeterKey	key = {
		.subject_id = *key_id,
		.generation = ak_catalog()->generation
	};

	return bucket_of(&key);
}

/*
 * A key's quota and rate will be asked for: have memory bring their bucket, and
 * then, after some work, what is first in it.  Without a lock, since it is a
 * guess.
 */
void
ak_meter_expect_bucket(const pg_uuid_t *key_id)
{
	prefetch(bucket_of_counts(key_id));
}

void
ak_meter_expect_entry(const pg_uuid_t *key_id)
{
	uint32		i = *(volatile uint32 *) bucket_of_counts(key_id);

	if (i != AK_NONE)
	{
		const char *entry = (const char *) &ak_shared->entries[i];

		prefetch(entry);
		prefetch(entry + sizeof(MeterEntry) - 1);
	}
}

/* MeterKey has no padding. */
StaticAssertDecl(sizeof(MeterKey) == 32, "MeterKey is hashed and compared as bytes");

static bool
is_found(const MeterEntry *entry, const MeterKey *key)
{
	if (key->period == AK_RATE)
		return ak_has_rate(entry) && entry->rate_name == key->period_start &&
			ak_same_subject(&entry->key, key);
	return memcmp(&entry->key, key, sizeof(MeterKey)) == 0;
}

/* The entry of a key, of a rate the one that it is in, or NULL. */
MeterEntry *
ak_entry_find(const MeterKey *key)
{
	uint32		i = *bucket_of(key);

	while (i != AK_NONE)
	{
		MeterEntry *entry = &ak_shared->entries[i];

		if (is_found(entry, key))
			return entry;
		i = entry->next;
	}
	return NULL;
}

void
ak_entry_free(uint32 i)
{
	SpinLockAcquire(&ak_shared->free_lock);
	ak_shared->entries[i].next = ak_shared->free_entry;
	ak_shared->free_entry = i;
	SpinLockRelease(&ak_shared->free_lock);
}

/* Take an entry out of the table.  The caller holds its partition. */
static void
remove_entry(MeterEntry *entry)
{
	uint32		i = entry - ak_shared->entries;
	uint32	   *link = bucket_of(&entry->key);

	while (*link != i)
		link = &ak_shared->entries[*link].next;
	*link = entry->next;
	entry->in_use = false;
	if (entry->key.period == AK_REQUEST && entry->refundable > 0)
		pg_atomic_fetch_sub_u32(&ak_shared->kept_requests, 1);
	table->removed[partition_of(&entry->key)]++;
	ak_entry_free(i);
}

/*
 * Whether an entry can go: what it says is durable, or of no account.  The
 * caller holds its partition.
 */
static bool
can_go(const MeterEntry *entry, TimestampTz now)
{
	return !entry->dirty && entry->refundable == 0 &&
		!ak_rate_is_filling(entry, now);
}

static bool
has_ended(const MeterEntry *entry, const MeterKey *successor)
{
	return entry->key.period == successor->period &&
		entry->key.period_start < successor->period_start;
}

/*
 * A quota has come into memory: it takes along the rate of the one before, which
 * goes if it can.  The caller holds the partition.
 */
static void
succeed(MeterEntry *quota)
{
	uint32		i = *bucket_of(&quota->key);

	while (i != AK_NONE)
	{
		MeterEntry *other = &ak_shared->entries[i];

		i = other->next;
		if (other == quota || !ak_is_quota(&other->key) ||
			!ak_same_subject(&other->key, &quota->key) ||
			has_ended(quota, &other->key))
			continue;
		if (!ak_has_rate(quota) && other->refundable == 0 &&
			ak_rate_goes_along(other))
			ak_rate_move(other, quota);
		if (has_ended(other, &quota->key) && can_go(other, GetCurrentTimestamp()))
			remove_entry(other);
	}
}

/*
 * Put a quota where its subject has an entry to spare: a rate's by itself, or
 * that of a period that has ended.  An entry whose rate neither goes along nor
 * is full is none (a clock that was set back, and other periods since).
 */
static bool
take_over(MeterEntry *entry, const MeterEntry *filled)
{
	MeterEntry	before = *entry;
	bool		along = ak_rate_goes_along(&before);

	if (before.key.period != AK_RATE &&
		(!has_ended(entry, &filled->key) || entry->dirty || entry->refundable > 0))
		return false;
	if (!along && ak_rate_is_filling(&before, GetCurrentTimestamp()))
		return false;
	*entry = *filled;
	entry->next = before.next;
	entry->refundable = before.refundable;
	if (along)
		ak_rate_move(&before, entry);
	table->removed[partition_of(&filled->key)]++;
	succeed(entry);
	return true;
}

/*
 * Put what was loaded to what its subject has in memory: a rate to a quota that
 * has none, a quota as above.  So that a subject which is in memory finds room
 * where nobody else does.  False if there is no such place.  The caller holds the
 * partition, and has looked that it is nowhere.
 */
bool
ak_entry_join(const MeterEntry *filled)
{
	uint32		i = *bucket_of(&filled->key);

	while (i != AK_NONE)
	{
		MeterEntry *entry = &ak_shared->entries[i];

		i = entry->next;
		if (!ak_same_subject(&entry->key, &filled->key))
			continue;
		if (ak_is_quota(&filled->key) && take_over(entry, filled))
			return true;
		if (ak_has_rate(filled) && ak_is_quota(&entry->key) && !ak_has_rate(entry))
		{
			ak_rate_begin(entry, filled);
			return true;
		}
	}
	return false;
}

/* Put a filled entry into the table.  The caller holds its partition. */
void
ak_entry_insert(uint32 i, const MeterEntry *filled)
{
	uint32	   *bucket = bucket_of(&filled->key);
	MeterEntry *entry = &ak_shared->entries[i];

	*entry = *filled;
	if (ak_has_rate(filled))
		ak_rate_begin(entry, filled);
	entry->next = *bucket;
	*bucket = i;
	if (ak_is_quota(&entry->key))
		succeed(entry);
}

/* Whether a look without the lock says that a rate keeps an entry. */
static bool
is_plainly_filling(const MeterEntry *entry, TimestampTz now)
{
	int64		ahead = entry->arrival - now * 1000;

	return ak_has_rate(entry) && ahead > 0 && ahead <= ak_rate_fill(entry);
}

/*
 * Evict one entry that can go, and was not used since the clock hand last came
 * by, unless those are all that can.  No partition may be held.  False if none
 * was found.
 */
static bool
evict_one(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			max_looks = Min(ak_max_tracked_keys + EVICTION_PATIENCE,
								EVICTION_LOOKS);

	for (int looks = 0; looks < max_looks; looks++)
	{
		uint32		i = pg_atomic_fetch_add_u32(&ak_shared->hand, 1) %
			ak_max_tracked_keys;
		MeterEntry *entry = &ak_shared->entries[i];
		MeterKey	key = entry->key;	/* a guess, until the lock is held */
		LWLock	   *lock = ak_partition_lock(&key);
		bool		evicted = false;

		if (!entry->in_use || entry->dirty || is_plainly_filling(entry, now))
			continue;
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (entry->in_use && memcmp(&entry->key, &key, sizeof(key)) == 0)
		{
			ak_rate_follow_clock(entry, now);
			evicted = (!entry->recent || looks >= EVICTION_PATIENCE) &&
				can_go(entry, now);
			if (evicted)
				remove_entry(entry);
			else
				entry->recent = false;
		}
		LWLockRelease(lock);
		if (evicted)
		{
			pg_atomic_fetch_add_u64(&ak_shared->evictions, 1);
			return true;
		}
	}
	return false;
}

/* A free entry, or AK_NONE if all are in use by work not yet durable. */
uint32
ak_entry_allocate(void)
{
	for (;;)
	{
		uint32		i;

		SpinLockAcquire(&ak_shared->free_lock);
		i = ak_shared->free_entry;
		if (i != AK_NONE)
			ak_shared->free_entry = ak_shared->entries[i].next;
		SpinLockRelease(&ak_shared->free_lock);
		if (i != AK_NONE)
			return i;
		if (!evict_one())
		{
			ak_shared->no_room_at = ak_elapsed();
			return AK_NONE;
		}
	}
}

/*
 * Remove all that a slot's generation holds; its meter is closed.  When it is
 * only closing, what may yet be given back stays: it is durable as it is, and
 * good for the next incarnation, since its ceiling is its count.  So does what
 * was given back after all was written: the next worker writes it.
 */
void
ak_meter_forget(uint32 generation, bool closing)
{
	for (int i = 0; i < ak_max_tracked_keys; i++)
	{
		MeterEntry *entry = &ak_shared->entries[i];
		MeterKey	key = entry->key;
		LWLock	   *lock;

		if (!entry->in_use || key.generation != generation)
			continue;
		lock = ak_partition_lock(&key);
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (entry->in_use && memcmp(&entry->key, &key, sizeof(key)) == 0 &&
			!(closing && (entry->refundable > 0 || entry->dirty)))
			remove_entry(entry);
		LWLockRelease(lock);
	}
}

/*
 * Pass through every partition: whoever was in a critical section before has
 * left it, whoever comes after sees what the caller stored before.
 */
void
ak_meter_barrier(void)
{
	for (int i = 0; i < AK_PARTITIONS; i++)
	{
		LWLockAcquire(&ak_shared->partitions[i].lock, LW_EXCLUSIVE);
		LWLockRelease(&ak_shared->partitions[i].lock);
	}
}
