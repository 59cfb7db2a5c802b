/*-------------------------------------------------------------------------
 *
 * meter_change.c
 *	  Change counts other than by a request.
 *
 * A refill of credits, an adjustment, the settlement of a reservation or a refund
 * changes counts in memory first; all but the last are acknowledged once they are
 * durable.  A refill gates admission too: else a crash would bring it twice.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "meter.h"

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

bool
ak_can_change(const MeterEntry *entry)
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
	ak_ask_for_write(db, entry);
}

/* The same of what aborts, which cannot wait. */
static void
note_undone(AkDatabase *db, MeterEntry *entry)
{
	if (pending_changes(entry) < PG_UINT8_MAX - 1)
		note_change(db, entry);
}

bool
ak_is_refill_due(const AkLimit *limit, const MeterEntry *entry)
{
	return limit->refill_due > entry->refilled;
}

/* What has been charged to credits once a refill is applied. */
int64
ak_charged_after_refill(const AkLimit *limit, int64 charged)
{
	return Min(charged, limit->amount - limit->refill_amount);
}

/*
 * Apply the refill that is due, if there is one: nothing is admitted until it
 * is durable.
 */
void
ak_refill(AkDatabase *db, const AkLimit *limit, MeterEntry *entry)
{
	int64		charged;

	if (!ak_is_refill_due(limit, entry))
		return;
	charged = ak_charged_after_refill(limit, entry->charged);
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

		entry->arrival -= back;
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
	else
	{
		/*
		 * What was to be given back may have been taken off by hand meanwhile: a
		 * count below zero would admit more than the limit.
		 */
		rest = Min(rest, entry->charged - entry->lost);
	}
	entry->charged -= rest;
	ak_mark_dirty(db, entry);

	/* Of what was refilled the worker does not learn by "charged". */
	if (refilled > 0)
		note_undone(db, entry);
}

/*
 * The end of a refundable charge: it stays, or is given back to what was
 * charged, whatever period is now.  Its entries are still there.  Runs in the
 * abort of a transaction: no errors, no look at any table.
 */
void
ak_meter_settle(const AkCharge *charge, bool give_back)
{
	AkDatabase *db = ak_database_of(&charge->limits[0].key);
	AkPartitions partitions;

	ak_partitions_find(charge, &partitions);
	ak_partitions_lock(&partitions);
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

		/*
		 * An adjustment was durable at once, and may have lowered the ceiling;
		 * undone, no row of the ledger would tell of it after a crash.
		 */
		if (give_back && charge->by_hand)
			note_undone(db, entry);
	}
	if (charge->has_request)
	{
		MeterEntry *request = ak_entry_find(&charge->request);

		if (request != NULL)
		{
			if (--request->refundable == 0)
				pg_atomic_fetch_sub_u32(&ak_shared->kept_requests, 1);
			if (give_back)
			{
				request->charged = 0;
				ak_mark_dirty(db, request);
			}
		}
	}
	ak_partitions_unlock(&partitions);
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
	if (change == AK_SETTLE || change == AK_RELEASE)
		settle(db, limit, entry, limit->used, charge->now);
	else if (change == AK_ADJUST)
	{
		entry->charged += limit->cost;
		if (charge->refundable && limit->cost != 0)
			entry->refundable++;
	}
	if (change != AK_REFILL && change != AK_RELEASE && !ak_limit_is_rate(limit))
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
		if (change != AK_RELEASE && !ak_can_change(entry))
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
		if (change != AK_SETTLE && change != AK_RELEASE && !ak_limit_is_rate(limit))
			(void) ak_see_limit(db, entry, limit->amount);
		entry->recent = true;
		if (change != AK_RELEASE && ak_limit_is_credits(limit))
			ak_refill(db, limit, entry);
		change_entry(db, charge, limit, entry, change);
		versions[i] = entry->changes;
		ak_limit_count(limit, entry);
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
			ak_ask_for_write(db, entry);
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
	AkDatabase *db = ak_database_of(&charge->limits[0].key);
	AkPartitions partitions;
	AkWait		for_worker;
	uint8		versions[AK_LIMITS_MAX];
	int			missing = 0;
	int			loads = 0;
	ChargeResult result;

	charge->changed = false;
	ak_partitions_find(charge, &partitions);
	ak_wait_begin(&for_worker, db, ak_meter_timeout);
	for (;;)
	{
		ak_partitions_lock(&partitions);
		result = change_locked(db, charge, change, versions, &missing);
		ak_partitions_unlock(&partitions);

		if (result == CHARGED || result == EXCEEDED)
			break;
		if (result == MISSING && loads++ < AK_LOADS_MAX &&
			ak_load_missing(charge, missing))
			continue;
		loads = 0;
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
 * Release a reservation in the worker, which cannot wait for itself: what is
 * given back is written when the count is.  False if it cannot be done now.
 */
bool
ak_meter_release(AkCharge *charge)
{
	AkDatabase *db = ak_database_of(&charge->limits[0].key);
	AkPartitions partitions;
	uint8		versions[AK_LIMITS_MAX];
	int			missing = 0;
	int			loads = 0;
	ChargeResult result;

	charge->changed = false;
	ak_partitions_find(charge, &partitions);
	do
	{
		ak_partitions_lock(&partitions);
		result = change_locked(db, charge, AK_RELEASE, versions, &missing);
		ak_partitions_unlock(&partitions);
	} while (result == MISSING && loads++ < AK_LOADS_MAX &&
			 ak_load_missing(charge, missing));
	return result == CHARGED;
}
