/*-------------------------------------------------------------------------
 *
 * meter_load.c
 *	  Bring counts into memory, lock them, look at them.
 *
 * A count that is not in memory is read from its table, without a lock; it is
 * put there unless something newer has come meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "meter.h"

/* ----- the list of entries that the worker has to look at ----- */

/*
 * Put an entry on its database's list, a stack that only the worker empties,
 * and only as a whole.  The caller holds the entry's partition.
 */
void
ak_mark_dirty(AkDatabase *db, MeterEntry *entry)
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

/*
 * Have the worker write an entry before its time.  The caller holds its partition.
 * Entries may be on the list more than once, but not each time that many wait for
 * one.
 */
void
ak_ask_for_write(AkDatabase *db, MeterEntry *entry)
{
	uint32		i = entry - ak_shared->entries;

	entry->raise_asked = true;
	ak_mark_dirty(db, entry);
	SpinLockAcquire(&db->asked_lock);
	if (db->nasked == 0 || db->nasked > AK_ASKED_MAX ||
		db->asked[db->nasked - 1] != i)
	{
		if (db->nasked < AK_ASKED_MAX)
			db->asked[db->nasked] = i;
		db->nasked = Min(db->nasked + 1, AK_ASKED_MAX + 1);
	}
	SpinLockRelease(&db->asked_lock);
	db->urgent = true;
}

/* Take what was asked for.  Returns how many entries, or AK_ASKED_MAX + 1. */
uint32
ak_meter_take_asked(AkDatabase *db, uint32 asked[AK_ASKED_MAX])
{
	uint32		n;

	SpinLockAcquire(&db->asked_lock);
	n = db->nasked;
	memcpy(asked, db->asked, Min(n, AK_ASKED_MAX) * sizeof(uint32));
	db->nasked = 0;
	SpinLockRelease(&db->asked_lock);
	return n;
}

/* Take the list; its entries are linked by next_dirty. */
uint32
ak_meter_take_dirty(AkDatabase *db)
{
	return pg_atomic_exchange_u32(&db->dirty, AK_NONE);
}

/* ----- the locks of a charge ----- */

static void
add_partition(AkPartitions *partitions, const MeterKey *key)
{
	LWLock	   *lock = ak_partition_lock(key);

	if (partitions->n == 0)
		partitions->locks[partitions->n++] = lock;
	else if (partitions->n == 1 && lock != partitions->locks[0])
	{
		partitions->locks[1] = Max(lock, partitions->locks[0]);
		partitions->locks[0] = Min(lock, partitions->locks[0]);
		partitions->n = 2;
	}
}

void
ak_partitions_find(const AkCharge *charge, AkPartitions *partitions)
{
	partitions->n = 0;
	for (int i = 0; i < charge->nlimits; i++)
		add_partition(partitions, &charge->limits[i].key);
	if (charge->has_request)
		add_partition(partitions, &charge->request);
}

void
ak_partitions_lock(const AkPartitions *partitions)
{
	for (int i = 0; i < partitions->n; i++)
		LWLockAcquire(partitions->locks[i], LW_EXCLUSIVE);
}

void
ak_partitions_unlock(const AkPartitions *partitions)
{
	for (int i = 0; i < partitions->n; i++)
		LWLockRelease(partitions->locks[i]);
}

/* ----- counts that are not in memory ----- */

/* What a rate begins with. */
static void
read_rate(const AkLimit *limit, MeterEntry *entry)
{
	TimestampTz crash = ak_crash_horizon(ak_catalog(), &limit->key.subject_id);
	int64		arrival = 0;

	if (crash > limit->rate.created_at)
		arrival = ak_rate_after_crash(&limit->rate, crash);
	if (!ak_database_of(&limit->key)->open)
		arrival = Max(arrival, ak_rate_mark(&limit->key));
	ak_rate_entry(entry, &limit->key, arrival);
}

/* What a limit's entry begins with. */
static void
read_entry(const AkLimit *limit, MeterEntry *entry)
{
	if (ak_limit_is_rate(limit))
	{
		read_rate(limit, entry);
		return;
	}
	memset(entry, 0, sizeof(MeterEntry));
	ak_usage_row(&limit->key, limit->amount, entry);
	entry->key = limit->key;
	entry->limit = limit->amount;
	entry->in_use = true;
	entry->recent = true;
}

/* What the entry of a request's id begins with. */
static void
read_request(const MeterKey *key, MeterEntry *entry)
{
	memset(entry, 0, sizeof(MeterEntry));
	entry->charged = entry->written = ak_request_row(key);
	entry->key = *key;
	entry->in_use = true;
	entry->recent = true;
}

/* A count that is being read, and what the meter was like before. */
typedef struct Loading
{
	MeterEntry	entry;
	uint32		removed;
	uint32		opened;
} Loading;

/*
 * Whether what was read, without a lock, is the last word: no entry of the
 * partition went away meanwhile (the worker writes only what has an entry) and
 * the meter was not closed.  The caller holds the partition.
 */
static bool
is_last_word(const Loading *loading)
{
	const MeterKey *key = &loading->entry.key;
	AkDatabase *db = ak_database_of(key);

	return db->open && db->opened == loading->opened &&
		db->generation == key->generation &&
		ak_entries_removed(key) == loading->removed && ak_entry_find(key) == NULL;
}

/*
 * Bring a limit's count into memory, a quota's from apikeys.usage (a rate that
 * is not in memory is full), or without a limit a request's id.  False if there
 * is no entry to be had.
 */
static bool
load_entry(const MeterKey *key, const AkLimit *limit)
{
	LWLock	   *lock = ak_partition_lock(key);
	Loading		loading;
	uint32		i;
	bool		done = false;

	LWLockAcquire(lock, LW_SHARED);
	loading.removed = ak_entries_removed(key);
	loading.opened = ak_database_of(key)->opened;
	LWLockRelease(lock);

	if (limit != NULL)
		read_entry(limit, &loading.entry);
	else
		read_request(key, &loading.entry);

	/* Only where its subject has no room it needs an entry more. */
	if (limit != NULL)
	{
		LWLockAcquire(lock, LW_EXCLUSIVE);
		done = !is_last_word(&loading) || ak_entry_join(&loading.entry);
		LWLockRelease(lock);
	}
	if (done)
		return true;

	i = ak_entry_allocate();
	if (i == AK_NONE)
		return false;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (is_last_word(&loading))
	{
		ak_entry_insert(i, &loading.entry);
		i = AK_NONE;
	}
	LWLockRelease(lock);
	if (i != AK_NONE)
		ak_entry_free(i);
	return true;
}

/*
 * Bring what a charge misses into memory: a limit's count, or the request's id.
 * False if there is no entry to be had.
 *
 * Reading a table may sleep for its lock, and take the wake-up of a wait that
 * was announced before for its own: then nobody would wake it any more.  So it
 * is taken back here; ak_wait_once() announces it anew.
 */
bool
ak_load_missing(const AkCharge *charge, int missing)
{
	ConditionVariableCancelSleep();
	if (missing == AK_MISSING_REQUEST)
		return load_entry(&charge->request, NULL);
	return load_entry(&charge->limits[missing].key, &charge->limits[missing]);
}

/*
 * Set a limit's count, without bringing it into memory.
 */
static void
peek(AkLimit *limit)
{
	const MeterKey *key = &limit->key;
	LWLock	   *lock = ak_partition_lock(key);
	MeterEntry	found;
	MeterEntry *entry;
	uint32		removed_before;
	bool		settled;

	do
	{
		LWLockAcquire(lock, LW_SHARED);
		removed_before = ak_entries_removed(key);
		entry = ak_entry_find(key);
		if (entry != NULL)
			found = *entry;
		LWLockRelease(lock);
		settled = entry != NULL;

		if (!settled)
		{
			/* As for loading: an entry that has come or gone is newer. */
			read_entry(limit, &found);
			LWLockAcquire(lock, LW_SHARED);
			settled = ak_entries_removed(key) == removed_before &&
				ak_entry_find(key) == NULL;
			LWLockRelease(lock);
		}
	} while (!settled);
	ak_limit_count(limit, &found);
	if (ak_is_refill_due(limit, &found))
		limit->count.charged = ak_charged_after_refill(limit, found.charged);
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
