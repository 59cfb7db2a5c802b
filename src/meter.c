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
 * A request is decided over all its limits, charged to all of them or none,
 * and its history record appended, in one critical section.  Its limits belong
 * to its key and to its key's user: at most two partitions are held, the lower
 * one first.
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

/* Put a filled entry into the table.  The caller holds its partition. */
static void
insert_entry(uint32 i, const MeterEntry *filled)
{
	uint32	   *bucket = bucket_of(&filled->key);

	ak_shared->entries[i] = *filled;
	ak_shared->entries[i].next = *bucket;
	*bucket = i;
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
			evicted = !entry->recent && !is_filling(entry, now);
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

/* Put a rate into a closed meter.  Errors: 53400 if there is no room. */
void
ak_meter_put_rate(const MeterKey *key, int64 arrival)
{
	MeterEntry	entry = {.key = *key,.charged = arrival,.in_use = true};
	LWLock	   *lock = ak_partition_lock(key);
	uint32		i = allocate_entry();

	if (i == AK_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the meter has no room for a rate"),
				 errhint("Raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_tracked_keys", ak_max_tracked_keys)));
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (find_entry(key) == NULL)
	{
		insert_entry(i, &entry);
		i = AK_NONE;
	}
	LWLockRelease(lock);
	if (i != AK_NONE)
		free_entry(i);
}

/* Show the rates of a closed meter that are not full. */
void
ak_meter_each_rate(uint32 generation, AkEntryVisitor visit, void *arg)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < ak_max_tracked_keys; i++)
	{
		const MeterEntry *entry = &ak_shared->entries[i];

		if (entry->in_use && entry->key.generation == generation &&
			is_filling(entry, now))
			visit(entry, arg);
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

/* The key of a subject's count in this database. */
void
ak_meter_key(MeterKey *key, const AkCatalog *catalog,
			 const pg_uuid_t *subject_id, bool is_user, AkPeriod period,
			 TimestampTz period_start)
{
	key->subject_id = *subject_id;
	key->period_start = period_start;
	key->generation = catalog->generation;
	key->database = ak_database_index(catalog->db);
	key->period = period;
	key->is_user = is_user;
}

static AkDatabase *
database_of(const MeterKey *key)
{
	return &ak_shared->databases[key->database];
}

/* The outcome of a charge that some limits refuse: a rate comes first. */
static AkOutcome
refusal_of(const AkCharge *charge)
{
	for (int i = 0; i < charge->nlimits; i++)
		if (charge->limits[i].refuses && ak_limit_is_rate(&charge->limits[i]))
			return AK_RATE_LIMITED;
	return AK_USAGE_EXCEEDED;
}

/*
 * The partitions of a charge's limits, in the order in which they are locked:
 * its subjects are a key and at most its user.
 */
typedef struct Partitions
{
	int			n;
	LWLock	   *locks[2];
} Partitions;

static void
find_partitions(const AkCharge *charge, Partitions *partitions)
{
	partitions->n = 0;
	for (int i = 0; i < charge->nlimits; i++)
	{
		LWLock	   *lock = ak_partition_lock(&charge->limits[i].key);

		if (partitions->n == 0)
			partitions->locks[partitions->n++] = lock;
		else if (partitions->n == 1 && lock != partitions->locks[0])
		{
			partitions->locks[1] = Max(lock, partitions->locks[0]);
			partitions->locks[0] = Min(lock, partitions->locks[0]);
			partitions->n = 2;
		}
	}
}

static void
lock_partitions(const Partitions *partitions)
{
	for (int i = 0; i < partitions->n; i++)
		LWLockAcquire(partitions->locks[i], LW_EXCLUSIVE);
}

static void
unlock_partitions(const Partitions *partitions)
{
	for (int i = 0; i < partitions->n; i++)
		LWLockRelease(partitions->locks[i]);
}

/* Whether a limit refuses what is asked of it, as its entry stands. */
static bool
refuses(const AkLimit *limit, const MeterEntry *entry, TimestampTz now)
{
	if (ak_limit_is_rate(limit))
		return !ak_rate_admits(&limit->rate, entry->charged, limit->cost, now);
	return (limit->amount >= 0 && limit->cost > 0 &&
			limit->cost > limit->amount - entry->charged) ||
		limit->cost > PG_INT64_MAX - entry->charged;
}

static bool
is_beyond_ceiling(const AkLimit *limit, const MeterEntry *entry)
{
	return !ak_limit_is_rate(limit) && limit->amount >= 0 &&
		limit->cost > 0 &&
		entry->charged + limit->cost - ak_crash_slack > entry->ceiling;
}

/* Consume what is asked of a limit; everything has been checked. */
static void
take(AkDatabase *db, AkLimit *limit, MeterEntry *entry, TimestampTz now,
	 bool *nudge)
{
	if (limit->cost == 0)
		return;
	if (ak_limit_is_rate(limit))
	{
		entry->charged = ak_rate_charge(&limit->rate, entry->charged,
										limit->cost, now);
		return;
	}
	entry->charged += limit->cost;
	mark_dirty(db, entry);

	/* Have the next ceiling on its way before somebody must wait for it. */
	if (limit->amount >= 0 && !entry->raise_asked &&
		entry->ceiling < limit->amount &&
		(entry->ceiling - entry->charged) * 2 < ak_meter_step(limit->amount))
	{
		entry->raise_asked = true;
		db->urgent = true;
		*nudge = true;
	}
}

static void
ask_for_ceiling(AkDatabase *db, const AkLimit *limit, MeterEntry *entry)
{
	entry->wanted = Max(entry->wanted, entry->charged + limit->cost);
	entry->raise_asked = true;
	mark_dirty(db, entry);
	db->urgent = true;
}

/*
 * The decision over all limits, and the charge: straight-line code.  The caller
 * holds their partitions.  *missing is set to a limit that has no entry.
 */
static ChargeResult
charge_locked(AkDatabase *db, AkCharge *charge, const AkRecord *record,
			  bool may_drop, int *missing, bool *nudge)
{
	MeterEntry *entries[AK_LIMITS_MAX];
	ChargeResult result = CHARGED;

	if (!db->open || db->generation != charge->limits[0].key.generation)
		return METER_CLOSED;
	for (int i = 0; i < charge->nlimits; i++)
	{
		entries[i] = find_entry(&charge->limits[i].key);
		if (entries[i] == NULL)
		{
			*missing = i;
			return MISSING;
		}
	}

	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		entries[i]->limit = limit->amount;
		entries[i]->recent = true;
		limit->refuses = refuses(limit, entries[i], charge->now);
		if (limit->refuses)
			result = EXCEEDED;
	}
	for (int i = 0; i < charge->nlimits && result != EXCEEDED; i++)
		if (is_beyond_ceiling(&charge->limits[i], entries[i]))
		{
			ask_for_ceiling(db, &charge->limits[i], entries[i]);
			result = BEYOND_CEILING;
		}
	if (result == CHARGED)
		switch (ak_history_append(db, record, may_drop))
		{
			case AK_CLOSED:
				return METER_CLOSED;
			case AK_FULL:
				return HISTORY_FULL;
			case AK_APPENDED:
				break;
		}

	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		if (result == CHARGED)
			take(db, limit, entries[i], charge->now, nudge);
		limit->count.charged = entries[i]->charged;
		limit->count.billed = entries[i]->charged - entries[i]->lost;
	}
	return result;
}

/* What a limit's entry begins with. */
static void
read_entry(const AkLimit *limit, MeterEntry *entry)
{
	memset(entry, 0, sizeof(MeterEntry));
	if (ak_limit_is_rate(limit))
	{
		entry->charged = ak_rate_after_crash(&limit->rate,
											 ak_crash_horizon(ak_catalog(),
															  &limit->key.subject_id));
		if (!database_of(&limit->key)->open)
			entry->charged = Max(entry->charged, ak_rate_mark(&limit->key));
	}
	else
		ak_usage_row(&limit->key, limit->amount, entry);
	entry->key = limit->key;
	entry->limit = limit->amount;
	entry->in_use = true;
}

/*
 * Bring a limit's count into memory: a quota's from apikeys.usage; a rate that
 * is not in memory is full.  False if there is no entry to be had.  The row is
 * read without a lock; it is the last word if no entry of the partition went
 * away meanwhile (the worker writes only what has an entry) and the meter was
 * not closed.
 */
static bool
load_entry(const AkLimit *limit)
{
	const MeterKey *key = &limit->key;
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

	read_entry(limit, &loaded);
	i = allocate_entry();
	if (i == AK_NONE)
		return false;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (db->open && db->opened == opened_before &&
		*removed == removed_before && find_entry(key) == NULL)
	{
		insert_entry(i, &loaded);
		i = AK_NONE;
	}
	LWLockRelease(lock);
	if (i != AK_NONE)
		free_entry(i);
	return true;
}

/*
 * Charge a request to all its limits and remember it, or find that one refuses
 * it: then nothing has changed.  The caller holds no lock.
 *
 * Sets each limit's count to what it is after the decision, and says which
 * refuse.  Waits for the worker where a ceiling, the history or the meter itself
 * asks for it.  Errors: 53000 if the worker does not come in time.
 */
AkOutcome
ak_meter_charge(AkCharge *charge, AkRecord *record)
{
	AkDatabase *db = database_of(&charge->limits[0].key);
	Partitions	partitions;
	AkWait		for_worker;
	AkWait		for_room;
	bool		may_drop = record->touch_only || db->stalled ||
		ak_history_overflow == AK_OVERFLOW_DROP;
	bool		nudge = false;
	int			missing = 0;
	ChargeResult result;

	find_partitions(charge, &partitions);
	ak_wait_begin(&for_worker, db, ak_meter_timeout);
	ak_wait_begin(&for_room, db, ak_history_wait_timeout);
	for (;;)
	{
		lock_partitions(&partitions);
		result = charge_locked(db, charge, record, may_drop, &missing, &nudge);
		unlock_partitions(&partitions);

		if (result == CHARGED || result == EXCEEDED)
			break;
		if (result == MISSING && load_entry(&charge->limits[missing]))
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

	if (result == EXCEEDED)
		return refusal_of(charge);
	if (nudge)
		ak_nudge(db);
	else
		ak_nudge_if_asleep(db);
	return AK_VALID;
}

/*
 * Set a limit's count, without bringing it into memory.
 */
static void
peek(AkLimit *limit)
{
	const MeterKey *key = &limit->key;
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
			read_entry(limit, &found);
			LWLockAcquire(lock, LW_SHARED);
			settled = *removed == removed_before && find_entry(key) == NULL;
			LWLockRelease(lock);
		}
	} while (!settled);
	limit->count.charged = found.charged;
	limit->count.billed = found.charged - found.lost;
}

/*
 * The same without charging: what the limits would say to a request of no cost
 * now.
 */
void
ak_meter_look(AkCharge *charge)
{
	for (int i = 0; i < charge->nlimits; i++)
		peek(&charge->limits[i]);
}

