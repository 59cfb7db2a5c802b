/*-------------------------------------------------------------------------
 *
 * meter.c
 *	  The counters in shared memory.
 *
 * A fixed array of entries, one a subject and period, found through a hash
 * table that is split into partitions by subject.  An entry belongs to its
 * subject's partition and is read and written under that partition's lock
 * only; the free list has a spinlock of its own.
 *
 * What is admitted must be durable before it is admitted, at least as a bound:
 * each entry has a ceiling that apikeys.usage already holds, and admission
 * beyond it waits for the worker to commit a higher one (as a sequence logs
 * values ahead).  The rules by which a row is read back are in usage_row.c.
 *
 * A request is charged and its history record appended in one critical
 * section, so that neither exists without the other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"

#include "apikeys.h"

/* How many entries an eviction looks at before it gives up for now. */
#define EVICTION_EFFORT 4096

typedef enum ChargeResult
{
	CHARGED,
	EXCEEDED,					/* the limit refuses */
	MISSING,					/* the entry is not in memory */
	BEYOND_CEILING,				/* wait for a higher one */
	METER_CLOSED,				/* wait for a worker */
	HISTORY_FULL				/* wait for a flush */
} ChargeResult;

/* What the hash table needs of its own, beside the entries. */
typedef struct MeterTable
{
	uint32		buckets_per_partition;	/* a power of two */
	uint32		removed[AK_PARTITIONS]; /* removals, so that a loader can tell
										 * whether its row is still the last */
	uint32		buckets[FLEXIBLE_ARRAY_MEMBER];
} MeterTable;

static MeterTable *table;

/* ----- the table ----- */

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
	uint64		rest = hash_bytes_extended((const unsigned char *) key + UUID_LEN,
										   sizeof(MeterKey) - UUID_LEN,
										   subject);

	return &table->buckets[(subject % AK_PARTITIONS) *
						   table->buckets_per_partition +
						   (rest & (table->buckets_per_partition - 1))];
}

/* MeterKey has no padding. */
StaticAssertDecl(sizeof(MeterKey) == 32, "MeterKey is hashed and compared as bytes");

static MeterEntry *
find_entry(const MeterKey *key)
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

static void
free_entry(uint32 i)
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
	free_entry(i);
}

/*
 * Evict one entry that is clean and was not used since the clock hand last
 * came by.  No partition may be held.  False if none was found.
 */
static bool
evict_one(void)
{
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
			evicted = !entry->recent;
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
static uint32
allocate_entry(void)
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

/* Remove all that a slot's generation holds; it is closed. */
void
ak_meter_forget(uint32 generation)
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
		if (entry->in_use && memcmp(&entry->key, &key, sizeof(key)) == 0)
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

/* ----- the list of entries that the worker has to look at ----- */

/*
 * Put an entry on its database's list, a stack that only the worker empties,
 * and only as a whole.  The caller holds the entry's partition.
 */
static void
mark_dirty(AkDatabase *db, MeterEntry *entry)
{
	uint32		head;

	if (entry->dirty)
		return;
	entry->dirty = true;
	head = pg_atomic_read_u32(&db->dirty);
	do
		entry->next_dirty = head;
	while (!pg_atomic_compare_exchange_u32(&db->dirty, &head,
										   entry - ak_shared->entries));
}

/* Take the list; its entries are linked by next_dirty. */
uint32
ak_meter_take_dirty(AkDatabase *db)
{
	return pg_atomic_exchange_u32(&db->dirty, AK_NONE);
}

/* ----- charging ----- */

/* How far ahead of the count a ceiling is committed while a key is active. */
int64
ak_meter_step(int64 limit)
{
	return Max(1, limit / 64);
}

/*
 * How far ahead of the count a key is taken to be that has no ceiling beyond
 * it on record: one that has gone idle, or has no row yet.  Nothing where
 * limits are small, so that a crash costs an idle key nothing there.
 */
int64
ak_meter_headroom(int64 limit)
{
	return limit < 0 ? 0 : limit / 64;
}

void
ak_meter_key(MeterKey *key, const AkCatalog *catalog, const AkSubject *subject,
			 TimestampTz period_start)
{
	key->subject_id = subject->subject_id;
	key->period_start = period_start;
	key->generation = catalog->generation;
	key->database = ak_database_index(catalog->db);
	key->period = subject->plan.period;
	key->is_user = subject->is_user;
}

static AkDatabase *
database_of(const MeterKey *key)
{
	return &ak_shared->databases[key->database];
}

/*
 * One attempt: straight-line code under the subject's partition.  Sets *count
 * where the entry was found.  "nudge" is set where the worker should be told.
 */
static ChargeResult
try_charge(const MeterKey *key, int64 limit, int64 cost,
		   const AkRecord *record, bool may_drop, AkCount *count, bool *nudge)
{
	AkDatabase *db = database_of(key);
	LWLock	   *lock = ak_partition_lock(key);
	MeterEntry *entry;
	ChargeResult result;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (!db->open || db->generation != key->generation)
	{
		LWLockRelease(lock);
		return METER_CLOSED;
	}
	entry = find_entry(key);
	if (entry == NULL)
	{
		LWLockRelease(lock);
		return MISSING;
	}

	entry->limit = limit;
	entry->recent = true;
	if ((limit >= 0 && cost > limit - entry->charged) ||
		cost > PG_INT64_MAX - entry->charged)
		result = EXCEEDED;
	else if (limit >= 0 &&
			 entry->charged + cost - ak_crash_slack > entry->ceiling)
	{
		entry->wanted = Max(entry->wanted, entry->charged + cost);
		entry->raise_asked = true;
		mark_dirty(db, entry);
		db->urgent = true;
		result = BEYOND_CEILING;
	}
	else
	{
		switch (ak_history_append(db, record, may_drop))
		{
			case AK_CLOSED:
				result = METER_CLOSED;
				break;
			case AK_FULL:
				result = HISTORY_FULL;
				break;
			default:
				entry->charged += cost;
				mark_dirty(db, entry);
				result = CHARGED;
				break;
		}
	}
	count->charged = entry->charged;
	count->billed = entry->charged - entry->lost;

	/* Have the next ceiling on its way before somebody must wait for it. */
	if (result == CHARGED && limit >= 0 && !entry->raise_asked &&
		entry->ceiling < limit &&
		(entry->ceiling - entry->charged) * 2 < ak_meter_step(limit))
	{
		entry->raise_asked = true;
		db->urgent = true;
		*nudge = true;
	}
	LWLockRelease(lock);
	return result;
}

/*
 * Bring a subject's count into memory from apikeys.usage.  False if there is
 * no entry to be had.  The row is read without a lock; it is the last word if
 * no entry of the partition went away meanwhile (the worker writes only what
 * has an entry) and the meter was not closed.
 */
static bool
load_entry(const MeterKey *key, int64 limit)
{
	AkDatabase *db = database_of(key);
	LWLock	   *lock = ak_partition_lock(key);
	uint32	   *removed = &table->removed[partition_of(key)];
	MeterEntry	loaded;
	uint32		removed_before;
	uint32		opened_before;
	uint32		i;

	LWLockAcquire(lock, LW_SHARED);
	removed_before = *removed;
	opened_before = db->opened;
	LWLockRelease(lock);

	memset(&loaded, 0, sizeof(loaded));
	ak_usage_row(key, limit, &loaded);
	loaded.key = *key;
	loaded.limit = limit;
	loaded.in_use = true;

	i = allocate_entry();
	if (i == AK_NONE)
		return false;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (db->open && db->opened == opened_before &&
		*removed == removed_before && find_entry(key) == NULL)
	{
		uint32	   *bucket = bucket_of(key);

		loaded.next = *bucket;
		ak_shared->entries[i] = loaded;
		*bucket = i;
		i = AK_NONE;
	}
	LWLockRelease(lock);
	if (i != AK_NONE)
		free_entry(i);
	return true;
}

/*
 * Charge a request to its subject and remember it, or find that the limit
 * refuses it: false, and nothing has changed.  The caller holds no lock.
 *
 * limit: requests per period, -1 for unlimited; cost: 1 to 2^31.
 * Sets *count to the subject's count after the decision.
 *
 * Waits for the worker where the ceiling, the history or the meter itself asks
 * for it.  Errors: 53000 if the worker does not come in time.
 */
bool
ak_meter_charge(const MeterKey *key, int64 limit, int64 cost,
				AkRecord *record, AkCount *count)
{
	AkDatabase *db = database_of(key);
	AkWait		for_worker;
	AkWait		for_room;
	bool		may_drop = record->touch_only || db->stalled ||
		ak_history_overflow == AK_OVERFLOW_DROP;
	bool		nudge = false;
	ChargeResult result;

	ak_wait_begin(&for_worker, db, ak_meter_timeout);
	ak_wait_begin(&for_room, db, ak_history_wait_timeout);
	for (;;)
	{
		result = try_charge(key, limit, cost, record, may_drop, count, &nudge);
		if (result == CHARGED || result == EXCEEDED)
			break;
		if (result == MISSING && load_entry(key, limit))
			continue;
		if (result == HISTORY_FULL)
		{
			may_drop = !ak_wait_once(&for_room);
			if (may_drop)
				db->stalled = true;
			continue;
		}
		if (for_worker.prepared)
			db->charge_waits++;
		if (!ak_wait_once(&for_worker))
			ak_wait_failed(&for_worker);
	}
	ak_wait_end(&for_room);
	ak_wait_end(&for_worker);

	if (nudge)
		ak_nudge(db);
	else if (result == CHARGED)
		ak_nudge_if_asleep(db);
	return result == CHARGED;
}

/*
 * The count of a subject, without bringing it into memory.
 */
void
ak_meter_peek(const MeterKey *key, int64 limit, AkCount *count)
{
	LWLock	   *lock = ak_partition_lock(key);
	uint32	   *removed = &table->removed[partition_of(key)];
	MeterEntry	found;
	MeterEntry *entry;
	uint32		removed_before;
	bool		settled;

	do
	{
		LWLockAcquire(lock, LW_SHARED);
		removed_before = *removed;
		entry = find_entry(key);
		if (entry != NULL)
			found = *entry;
		LWLockRelease(lock);
		settled = entry != NULL;

		if (!settled)
		{
			/* As for loading: an entry that has come or gone is newer. */
			ak_usage_row(key, limit, &found);
			LWLockAcquire(lock, LW_SHARED);
			settled = *removed == removed_before && find_entry(key) == NULL;
			LWLockRelease(lock);
		}
	} while (!settled);
	count->charged = found.charged;
	count->billed = found.charged - found.lost;
}
