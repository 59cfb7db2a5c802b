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

/* How many entries an eviction looks at before it gives up for now. */
#define EVICTION_EFFORT 4096

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

/* The subject chooses the partition, the rest of the key the bucket in it. */
static uint32 *
bucket_of(const MeterKey *key)
{
	uint64		subject = subject_hash(key);
	uint64		rest = hash_combine64(subject, (uint64) key->period_start ^
									  ((uint64) key->generation << 32 |
									   key->period));

	return &table->buckets[(subject % AK_PARTITIONS) *
						   table->buckets_per_partition +
						   (rest & (table->buckets_per_partition - 1))];
}

/* MeterKey has no padding. */
StaticAssertDecl(sizeof(MeterKey) == 32, "MeterKey is hashed and compared as bytes");

MeterEntry *
ak_entry_find(const MeterKey *key)
{
	uint32		i = *bucket_of(key);

	while (i != AK_NONE)
	{
		MeterEntry *entry = &ak_shared->entries[i];

		if (memcmp(&entry->key, key, sizeof(MeterKey)) == 0)
			return entry;
		i = entry->next;
	}
	return NULL;
}

/* Put a filled entry into the table.  The caller holds its partition. */
void
ak_entry_insert(uint32 i, const MeterEntry *filled)
{
	uint32	   *bucket = bucket_of(&filled->key);

	ak_shared->entries[i] = *filled;
	if (filled->key.period == AK_RATE)
		ak_shared->entries[i].life = ak_entries_removed(&filled->key) + 1;
	ak_shared->entries[i].next = *bucket;
	*bucket = i;
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
	table->removed[partition_of(&entry->key)]++;
	ak_entry_free(i);
}

/*
 * After the wall clock was set back, a rate's arrival time can be further ahead
 * than any request moves it: the rate would refuse until the clock has caught
 * up.  Then it counts as used up now, and fills from there.  The same when the
 * rate was replaced by a faster one.
 *
 * "now" may be old, since its caller may have waited meanwhile: what others
 * were admitted is not taken back for that.
 */
void
ak_entry_follow_clock(MeterEntry *entry, TimestampTz now)
{
	if (entry->key.period != AK_RATE || entry->ceiling == 0 ||
		entry->charged - now * 1000 <= entry->ceiling)
		return;
	entry->charged = Min(entry->charged,
						 GetCurrentTimestamp() * 1000 + entry->ceiling);
}

/* A rate that is not full again is known to memory alone. */
static bool
is_filling(const MeterEntry *entry, TimestampTz now)
{
	return entry->key.period == AK_RATE &&
		!ak_rate_is_full(entry->charged, now);
}

/*
 * Evict one entry that is clean and was not used since the clock hand last
 * came by.  No partition may be held.  False if none was found.
 */
static bool
evict_one(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int effort = 0; effort < EVICTION_EFFORT; effort++)
	{
		uint32		i = pg_atomic_fetch_add_u32(&ak_shared->hand, 1) %
			ak_max_tracked_keys;
		MeterEntry *entry = &ak_shared->entries[i];
		MeterKey	key = entry->key;	/* a guess, until the lock is held */
		LWLock	   *lock = ak_partition_lock(&key);
		bool		evicted = false;

		if (!entry->in_use || entry->dirty)
			continue;
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (entry->in_use && !entry->dirty &&
			memcmp(&entry->key, &key, sizeof(key)) == 0)
		{
			ak_entry_follow_clock(entry, now);
			evicted = !entry->recent && entry->refundable == 0 &&
				!is_filling(entry, now);
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
			return AK_NONE;
	}
}

/*
 * Remove all that a slot's generation holds; its meter is closed.  When it is
 * only closing, what may yet be given back stays: it is durable as it is, and
 * good for the next incarnation, since its ceiling is its count.
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
			!(closing && entry->refundable > 0))
			remove_entry(entry);
		LWLockRelease(lock);
	}
}

/* Put a rate into a closed meter.  Errors: 53400 if there is no room. */
void
ak_meter_put_rate(const MeterKey *key, int64 arrival)
{
	MeterEntry	entry = {.key = *key,.charged = arrival,.in_use = true};
	LWLock	   *lock = ak_partition_lock(key);
	uint32		i = ak_entry_allocate();

	if (i == AK_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the meter has no room for a rate"),
				 errhint("Raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_tracked_keys", ak_max_tracked_keys)));
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (ak_entry_find(key) == NULL)
	{
		ak_entry_insert(i, &entry);
		i = AK_NONE;
	}
	LWLockRelease(lock);
	if (i != AK_NONE)
		ak_entry_free(i);
}

/* Show the rates of a closed meter that are not full. */
void
ak_meter_each_rate(uint32 generation, AkEntryVisitor visit, void *arg)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < ak_max_tracked_keys; i++)
	{
		MeterEntry	entry = ak_shared->entries[i];

		ak_entry_follow_clock(&entry, now);
		if (entry.in_use && entry.key.generation == generation &&
			is_filling(&entry, now))
			visit(&entry, arg);
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
