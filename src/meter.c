/*-------------------------------------------------------------------------
 *
 * meter.c
 *	  Hold requests to their limits, in shared memory.
 *
 * What is admitted must be durable before it is admitted, at least as a bound:
 * each entry has a ceiling that apikeys.usage already holds, and admission
 * beyond it waits for the worker to commit a higher one (as a sequence logs
 * values ahead).  The rules by which a row is read back are in usage_row.c.
 *
 * What is not a request (a refill of credits, an adjustment, the settlement of
 * a reservation) also changes counts in memory first, and is acknowledged once
 * it is durable.  A refill gates admission too: else a crash would bring it
 * twice.
 *
 * A request is decided over all its limits, charged to all of them or none,
 * and its history record appended, in one critical section.  Its limits belong
 * to its key and to its key's user: at most two partitions are held, the lower
 * one first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "meter.h"

typedef enum ChargeResult
{
	CHARGED,
	REPEATED,					/* the request was charged before */
	EXCEEDED,					/* the limit refuses */
	MISSING,					/* the entry is not in memory */
	BEYOND_CEILING,				/* wait for a higher one */
	METER_CLOSED,				/* wait for a worker */
	HISTORY_FULL,				/* wait for a flush */
	TOO_MANY_CHANGES			/* wait until some are durable */
} ChargeResult;

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

/* Whether a limit is none; a grant of credits may have any sign. */
bool
ak_is_unlimited(const MeterKey *key, int64 limit)
{
	return limit < 0 && key->period != AK_CREDITS;
}

/*
 * How far ahead of the count a ceiling is committed while a key is active: of
 * a quota, or of what is left of the credits.
 */
int64
ak_meter_step(const MeterEntry *entry)
{
	int64		limit = entry->limit;

	if (entry->key.period == AK_CREDITS)
		limit -= entry->charged;
	return Max(1, limit / 64);
}

/*
 * How far ahead of the count a key is taken to be that has no ceiling beyond
 * it on record: one that has gone idle, or has no row yet.  Nothing where
 * limits are small, so that a crash costs an idle key nothing there; nor of
 * credits, whose limit moves all the time.
 */
int64
ak_meter_headroom(const MeterKey *key, int64 limit)
{
	return limit < 0 || key->period == AK_CREDITS ? 0 : limit / 64;
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
add_partition(Partitions *partitions, const MeterKey *key)
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

static void
find_partitions(const AkCharge *charge, Partitions *partitions)
{
	partitions->n = 0;
	for (int i = 0; i < charge->nlimits; i++)
		add_partition(partitions, &charge->limits[i].key);
	if (charge->has_request)
		add_partition(partitions, &charge->request);
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
	if (limit->cost == 0)
		return false;
	if (ak_is_unlimited(&limit->key, limit->amount))
		return entry->charged > PG_INT64_MAX - limit->cost;
	return limit->cost > limit->amount - entry->charged;
}

/* No slack for credits: they are paid for. */
static bool
is_beyond_ceiling(const AkLimit *limit, const MeterEntry *entry)
{
	int64		slack = ak_limit_is_credits(limit) ? 0 : ak_crash_slack;

	return !ak_limit_is_rate(limit) && limit->cost > 0 &&
		!ak_is_unlimited(&limit->key, limit->amount) &&
		entry->charged + limit->cost - slack > entry->ceiling;
}

/* Consume what is asked of a limit; everything has been checked. */
static void
take(AkDatabase *db, const AkCharge *charge, AkLimit *limit,
	 MeterEntry *entry, bool *nudge)
{
	if (limit->cost == 0)
		return;
	if (charge->refundable)
		entry->refundable++;
	if (ak_limit_is_rate(limit))
	{
		entry->charged = ak_rate_charge(&limit->rate, entry->charged,
										limit->cost, charge->now);
		limit->arrival = entry->charged + entry->given_back;
		limit->life = entry->life;
		return;
	}
	limit->lost = entry->lost;
	entry->charged += limit->cost;
	mark_dirty(db, entry);

	/* Have the next ceiling on its way before somebody must wait for it. */
	if (!ak_is_unlimited(&limit->key, limit->amount) && !entry->raise_asked &&
		entry->ceiling < limit->amount &&
		(entry->ceiling - entry->charged) * 2 < ak_meter_step(entry))
	{
		entry->raise_asked = true;
		db->urgent = true;
		*nudge = true;
	}
}

static void
ask_for_ceiling(AkDatabase *db, const AkLimit *limit, MeterEntry *entry)
{
	entry->wanted = Max(entry->wanted, limit->cost);
	entry->raise_asked = true;
	mark_dirty(db, entry);
	db->urgent = true;
}

/* ----- changes that are no charge ----- */

/*
 * Changes of an entry that may be on their way to the disk.  The counters wrap
 * well beyond it: what aborts cannot wait.
 */
#define CHANGES_MAX 100

static uint8
pending_changes(const MeterEntry *entry)
{
	return entry->changes - entry->changes_written;
}

static bool
can_change(const MeterEntry *entry)
{
	return pending_changes(entry) < CHANGES_MAX;
}

/* Whether a change is none of the last ones, which are not written yet. */
static bool
is_durable(const MeterEntry *entry, uint8 change)
{
	return (uint8) (entry->changes - change) >= pending_changes(entry);
}

/* Have a change made durable soon. */
static void
note_change(AkDatabase *db, MeterEntry *entry)
{
	entry->changes++;
	entry->raise_asked = true;
	mark_dirty(db, entry);
	db->urgent = true;
}

static bool
is_refill_due(const AkLimit *limit, const MeterEntry *entry)
{
	return limit->refill_due > entry->refilled;
}

/* What has been charged to credits once a refill is applied. */
static int64
charged_after_refill(const AkLimit *limit, int64 charged)
{
	return Min(charged, limit->amount - limit->refill_amount);
}

/*
 * Apply the refill that is due, if there is one: nothing is admitted until it
 * is durable.
 */
static void
refill(AkDatabase *db, const AkLimit *limit, MeterEntry *entry)
{
	int64		charged;

	if (!is_refill_due(limit, entry))
		return;
	charged = charged_after_refill(limit, entry->charged);
	entry->lost -= entry->charged - charged;
	entry->charged = charged;
	entry->ceiling = charged;
	entry->refilled = limit->refill_due;
	note_change(db, entry);
}

/*
 * The end of what could be given back: "used" of a limit's cost is kept.
 *
 * Had the rest never been charged, refills since would have added as much less:
 * that is taken back first.  ("lost" is less by what they have added.)
 */
static void
settle(AkDatabase *db, const AkLimit *limit, MeterEntry *entry, int64 used,
	   TimestampTz charged_at)
{
	int64		rest = limit->cost - used;
	int64		refilled = 0;

	if (ak_limit_is_rate(limit))
	{
		int64		back = ak_rate_settle(&limit->rate, limit->cost, used,
										  charged_at,
										  limit->life != entry->life ? 0 :
										  limit->arrival - entry->given_back,
										  ak_database_clock(db, GetCurrentTimestamp()));

		entry->charged -= back;
		entry->given_back += back;
		return;
	}
	if (rest == 0)
		return;
	if (ak_limit_is_credits(limit))
	{
		refilled = Min(Max(limit->lost - entry->lost, 0), rest);
		entry->lost += refilled;
		rest -= refilled;
	}
	entry->charged -= rest;
	mark_dirty(db, entry);

	/*
	 * Of what was refilled the worker does not learn by "charged"; an adjustment
	 * that is undone may have lowered the ceiling.
	 */
	if ((refilled > 0 || rest < 0) && pending_changes(entry) < PG_UINT8_MAX - 1)
		note_change(db, entry);
}

/* That the request itself has no entry yet. */
#define MISSING_REQUEST (-1)

/*
 * The decision over all limits, and the charge: straight-line code.  The caller
 * holds their partitions.  *missing is set to a limit that has no entry.
 */
static ChargeResult
charge_locked(AkDatabase *db, AkCharge *charge, const AkRecord *record,
			  bool may_drop, int *missing, bool *nudge)
{
	MeterEntry *entries[AK_LIMITS_MAX];
	MeterEntry *request = NULL;
	ChargeResult result = CHARGED;

	if (!db->open || db->generation != charge->limits[0].key.generation)
		return METER_CLOSED;
	for (int i = 0; i < charge->nlimits; i++)
	{
		entries[i] = ak_entry_find(&charge->limits[i].key);
		if (entries[i] == NULL)
		{
			*missing = i;
			return MISSING;
		}
	}
	if (charge->has_request)
	{
		request = ak_entry_find(&charge->request);
		if (request == NULL)
		{
			*missing = MISSING_REQUEST;
			return MISSING;
		}
		request->recent = true;
	}

	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		entries[i]->limit = limit->amount;
		entries[i]->recent = true;
		if (ak_limit_is_rate(limit))
		{
			entries[i]->ceiling = limit->rate.burst * limit->rate.emission;
			ak_entry_follow_clock(entries[i], charge->now);
		}
		if (ak_limit_is_credits(limit))
		{
			if (!can_change(entries[i]))
				return TOO_MANY_CHANGES;
			refill(db, limit, entries[i]);
		}
		limit->refuses = refuses(limit, entries[i], charge->now);
		if (limit->refuses)
			result = EXCEEDED;
	}
	if (request != NULL && ak_request_is_known(request, charge->now))
		result = REPEATED;
	for (int i = 0; i < charge->nlimits && result == CHARGED; i++)
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

	if (result == CHARGED && request != NULL)
	{
		request->charged = charge->now;
		if (charge->refundable)
			request->refundable++;
		mark_dirty(db, request);
	}
	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		if (result == REPEATED)
			limit->refuses = false;
		if (result == CHARGED)
			take(db, charge, limit, entries[i], nudge);
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
		TimestampTz crash = ak_crash_horizon(ak_catalog(),
											 &limit->key.subject_id);

		if (crash > limit->rate.created_at)
			entry->charged = ak_rate_after_crash(&limit->rate, crash);
		if (!database_of(&limit->key)->open)
			entry->charged = Max(entry->charged, ak_rate_mark(&limit->key));
	}
	else
		ak_usage_row(&limit->key, limit->amount, entry);
	entry->key = limit->key;
	entry->limit = limit->amount;
	entry->in_use = true;
}

/* What the entry of a request's id begins with. */
static void
read_request(const MeterKey *key, MeterEntry *entry)
{
	memset(entry, 0, sizeof(MeterEntry));
	entry->charged = entry->written = ak_request_row(key);
	entry->key = *key;
	entry->in_use = true;
}

/*
 * Bring a limit's count into memory, a quota's from apikeys.usage (a rate that
 * is not in memory is full), or without a limit a request's id.  False if there
 * is no entry to be had.  The row is read without a lock; it is the last word if
 * no entry of the partition went away meanwhile (the worker writes only what has
 * an entry) and the meter was not closed.
 */
static bool
load_entry(const MeterKey *key, const AkLimit *limit)
{
	AkDatabase *db = database_of(key);
	LWLock	   *lock = ak_partition_lock(key);
	MeterEntry	loaded;
	uint32		removed_before;
	uint32		opened_before;
	uint32		i;

	LWLockAcquire(lock, LW_SHARED);
	removed_before = ak_entries_removed(key);
	opened_before = db->opened;
	LWLockRelease(lock);

	if (limit != NULL)
		read_entry(limit, &loaded);
	else
		read_request(key, &loaded);
	i = ak_entry_allocate();
	if (i == AK_NONE)
		return false;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (db->open && db->opened == opened_before &&
		db->generation == key->generation &&
		ak_entries_removed(key) == removed_before && ak_entry_find(key) == NULL)
	{
		ak_entry_insert(i, &loaded);
		i = AK_NONE;
	}
	LWLockRelease(lock);
	if (i != AK_NONE)
		ak_entry_free(i);
	return true;
}

static bool
load_missing(const AkCharge *charge, int missing)
{
	if (missing == MISSING_REQUEST)
		return load_entry(&charge->request, NULL);
	return load_entry(&charge->limits[missing].key, &charge->limits[missing]);
}

/*
 * Charge a request to all its limits and remember it, or find that one refuses
 * it: then nothing has changed.  Nor has it if the request was charged before:
 * then charge->repeated is set.  The caller holds no lock.
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

		if (result == CHARGED || result == EXCEEDED || result == REPEATED)
			break;
		if (result == MISSING && load_missing(charge, missing))
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

	charge->repeated = result == REPEATED;
	if (result == EXCEEDED)
		return refusal_of(charge);
	if (nudge)
		ak_nudge(db);
	else
		ak_nudge_if_asleep(db);
	return AK_VALID;
}

/*
 * The end of a refundable charge: it stays, or is given back to what was
 * charged, whatever period is now.  Its entries are still there.  Runs in the
 * abort of a transaction: no errors, no look at any table.
 */
void
ak_meter_settle(const AkCharge *charge, bool give_back)
{
	AkDatabase *db = database_of(&charge->limits[0].key);
	Partitions	partitions;

	find_partitions(charge, &partitions);
	lock_partitions(&partitions);
	for (int i = 0; i < charge->nlimits; i++)
	{
		const AkLimit *limit = &charge->limits[i];
		MeterEntry *entry = limit->cost != 0 ? ak_entry_find(&limit->key) : NULL;

		/* Only a dropped extension forgets a refundable entry. */
		if (entry == NULL)
			continue;
		Assert(entry->refundable > 0);
		entry->refundable--;
		settle(db, limit, entry, give_back ? 0 : limit->cost, charge->now);
	}
	if (charge->has_request)
	{
		MeterEntry *request = ak_entry_find(&charge->request);

		if (request != NULL)
		{
			request->refundable--;
			if (give_back)
			{
				request->charged = 0;
				mark_dirty(db, request);
			}
		}
	}
	unlock_partitions(&partitions);
	if (give_back && db->urgent)
		ak_nudge(db);
	else if (give_back)
		ak_nudge_if_asleep(db);
}

/* Make a change to one count.  The caller holds its partition. */
static void
change_entry(AkDatabase *db, const AkCharge *charge, const AkLimit *limit,
			 MeterEntry *entry, AkChange change)
{
	if (change == AK_SETTLE)
		settle(db, limit, entry, limit->used, charge->now);
	else if (change == AK_ADJUST)
	{
		entry->charged += limit->cost;
		if (charge->refundable && limit->cost != 0)
			entry->refundable++;
	}
	if (change != AK_REFILL && !ak_limit_is_rate(limit))
		note_change(db, entry);
}

/*
 * Change all counts of a charge, and set *durable to what will tell that each
 * is durable.  EXCEEDED: an adjustment would go below zero, or too high, and
 * nothing has changed.  The caller holds the partitions.
 */
static ChargeResult
change_locked(AkDatabase *db, AkCharge *charge, AkChange change,
			  uint8 *versions, int *missing)
{
	MeterEntry *entries[AK_LIMITS_MAX];

	if (!db->open || db->generation != charge->limits[0].key.generation)
		return METER_CLOSED;
	for (int i = 0; i < charge->nlimits; i++)
	{
		const AkLimit *limit = &charge->limits[i];
		MeterEntry *entry = ak_entry_find(&limit->key);

		*missing = i;
		entries[i] = entry;
		if (entry == NULL && ak_limit_is_rate(limit))
			continue;			/* it is full again */
		if (entry == NULL)
			return MISSING;
		if (!can_change(entry))
			return TOO_MANY_CHANGES;
		if (change == AK_ADJUST &&
			(limit->cost < -(entry->charged - entry->lost) ||
			 (limit->cost > 0 && entry->charged > AK_ADJUST_MAX - limit->cost)))
			return EXCEEDED;
	}
	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];
		MeterEntry *entry = entries[i];

		if (entry == NULL)
			continue;
		if (change != AK_SETTLE && !ak_limit_is_rate(limit))
			entry->limit = limit->amount;
		entry->recent = true;
		if (ak_limit_is_credits(limit))
			refill(db, limit, entry);
		change_entry(db, charge, limit, entry, change);
		versions[i] = entry->changes;
		limit->count.charged = entry->charged;
		limit->count.billed = entry->charged - entry->lost;
	}
	charge->changed = true;
	return CHARGED;
}

/* Whether all changes of a charge are durable; if not, they are asked for. */
static bool
all_durable(AkDatabase *db, const AkCharge *charge, const uint8 *versions)
{
	bool		durable = true;

	for (int i = 0; i < charge->nlimits; i++)
	{
		const AkLimit *limit = &charge->limits[i];
		LWLock	   *lock = ak_partition_lock(&limit->key);
		MeterEntry *entry;

		LWLockAcquire(lock, LW_EXCLUSIVE);
		entry = ak_entry_find(&limit->key);

		/* What is not in memory any more is durable. */
		if (entry != NULL && !ak_limit_is_rate(limit) &&
			!is_durable(entry, versions[i]))
		{
			durable = false;
			entry->raise_asked = true;
			db->urgent = true;
		}
		LWLockRelease(lock);
	}
	return durable;
}

/*
 * Change the counts of a charge other than by a request, and wait until that
 * is durable.  The caller holds no lock.  Sets each limit's count.
 *
 * False if an adjustment would go below zero, or too high: then nothing has
 * changed.  Errors: 53000 if the worker does not come in time; charge->changed says
 * whether the change was made.
 */
bool
ak_meter_change(AkCharge *charge, AkChange change)
{
	AkDatabase *db = database_of(&charge->limits[0].key);
	Partitions	partitions;
	AkWait		for_worker;
	uint8		versions[AK_LIMITS_MAX];
	int			missing = 0;
	ChargeResult result;

	charge->changed = false;
	find_partitions(charge, &partitions);
	ak_wait_begin(&for_worker, db, ak_meter_timeout);
	for (;;)
	{
		lock_partitions(&partitions);
		result = change_locked(db, charge, change, versions, &missing);
		unlock_partitions(&partitions);

		if (result == CHARGED || result == EXCEEDED)
			break;
		if (result == MISSING && load_missing(charge, missing))
			continue;
		if (!ak_wait_once(&for_worker))
			ak_wait_failed(&for_worker);
	}
	if (result == CHARGED && charge->refundable)
		ak_refund_keep(charge);
	while (result == CHARGED && !all_durable(db, charge, versions))
		if (!ak_wait_once(&for_worker))
			ak_wait_failed(&for_worker);
	ak_wait_end(&for_worker);
	ak_nudge_if_asleep(db);
	return result == CHARGED;
}

/*
 * Settle a reservation in the worker, which cannot wait for itself.  False if
 * it cannot be done now.
 */
bool
ak_meter_try_settle(AkCharge *charge)
{
	AkDatabase *db = database_of(&charge->limits[0].key);
	Partitions	partitions;
	uint8		versions[AK_LIMITS_MAX];
	int			missing = 0;
	ChargeResult result;

	charge->changed = false;
	find_partitions(charge, &partitions);
	do
	{
		lock_partitions(&partitions);
		result = change_locked(db, charge, AK_SETTLE, versions, &missing);
		unlock_partitions(&partitions);
	} while (result == MISSING && load_missing(charge, missing));
	return result == CHARGED;
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
	limit->count.charged = is_refill_due(limit, &found) ?
		charged_after_refill(limit, found.charged) : found.charged;
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

