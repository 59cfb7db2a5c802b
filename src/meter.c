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
 * What changes counts other than a request is in meter_change.c, how they come
 * into memory in meter_load.c.
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

/*
 * The key of a subject's count in this database.  "period" is an AkPeriod, AK_RATE
 * or AK_REQUEST.
 */
void
ak_meter_key(MeterKey *key, const AkCatalog *catalog,
			 const pg_uuid_t *subject_id, bool is_user, uint8 period,
			 TimestampTz period_start)
{
	key->subject_id = *subject_id;
	key->period_start = period_start;
	key->generation = catalog->generation;
	key->database = ak_database_index(catalog->db);
	key->period = period;
	key->is_user = is_user;
}

/* What a limit has counted so far: of a rate, its arrival time. */
void
ak_limit_count(AkLimit *limit, const MeterEntry *entry)
{
	bool		is_rate = ak_limit_is_rate(limit);

	limit->count.charged = is_rate ? entry->arrival : entry->charged;
	limit->count.billed = is_rate ? 0 : entry->charged - entry->lost;
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

/* Whether a limit refuses what is asked of it, as its entry stands. */
static bool
refuses(const AkLimit *limit, const MeterEntry *entry, TimestampTz now)
{
	if (ak_limit_is_rate(limit))
		return !ak_rate_admits(&limit->rate, entry->arrival, limit->cost, now);
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
		entry->arrival = ak_rate_charge(&limit->rate, entry->arrival,
										limit->cost, charge->now);
		limit->arrival = entry->arrival + entry->given_back;
		limit->life = entry->life;
		return;
	}
	limit->lost = entry->lost;
	entry->charged += limit->cost;
	ak_mark_dirty(db, entry);

	/* Have the next ceiling on its way before somebody must wait for it. */
	if (!ak_is_unlimited(&limit->key, limit->amount) && !entry->raise_asked &&
		entry->ceiling < limit->amount &&
		(entry->ceiling - entry->charged) * 2 < ak_meter_step(entry))
	{
		ak_ask_for_write(db, entry);
		*nudge = true;
	}
}

static void
ask_for_ceiling(AkDatabase *db, const AkLimit *limit, MeterEntry *entry)
{
	entry->wanted = Max(entry->wanted, limit->cost);
	ak_ask_for_write(db, entry);
}

/*
 * The limit that a count is held to.  What may be admitted without a row goes by
 * the limit there is when the row is missed, after a crash (usage_row.c): where it
 * is lower than before, less may be, and what has been is written soon.  So is
 * what has been admitted without any limit, beyond its ceiling.  The caller holds
 * the entry's partition.  True if the worker was asked to write.
 */
bool
ak_see_limit(AkDatabase *db, MeterEntry *entry, int64 limit)
{
	bool		was_unlimited = entry->limit < 0;
	bool		is_lower = limit >= 0 && (was_unlimited || limit < entry->limit);
	int64		bound = entry->ceiling;

	entry->limit = limit;
	if (!is_lower || !ak_is_quota(&entry->key))
		return false;
	if (!was_unlimited)
	{
		if (entry->last_write != 0)
			return false;
		bound = Max(entry->written, 0) + ak_meter_headroom(&entry->key, limit);
		entry->ceiling = Min(entry->ceiling, Max(entry->charged, bound));
	}
	if (entry->charged <= bound)
		return false;
	ak_ask_for_write(db, entry);
	return true;
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
			*missing = AK_MISSING_REQUEST;
			return MISSING;
		}
		request->recent = true;
	}

	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		entries[i]->recent = true;
		if (ak_limit_is_rate(limit))
			ak_rate_follow_clock_by(entries[i], limit->rate.burst *
									limit->rate.emission, charge->now);
		else if (ak_see_limit(db, entries[i], limit->amount))
			*nudge = true;
		if (ak_limit_is_credits(limit))
		{
			if (!ak_can_change(entries[i]))
				return TOO_MANY_CHANGES;
			ak_refill(db, limit, entries[i]);
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
		if (charge->refundable && request->refundable++ == 0)
			pg_atomic_fetch_add_u32(&ak_shared->kept_requests, 1);
		ak_mark_dirty(db, request);
	}
	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		if (result == REPEATED)
			limit->refuses = false;
		if (result == CHARGED)
			take(db, charge, limit, entries[i], nudge);
		ak_limit_count(limit, entries[i]);
	}
	return result;
}

/*
 * Each request that names itself takes an entry, which stays while the request
 * may be given back: one open transaction must not take all there are, in all
 * databases.  It may be a few more than half of them, since nobody waits here.
 */
static void
check_kept_requests(const AkCharge *charge)
{
	if (charge->has_request && charge->refundable &&
		pg_atomic_read_u32(&ak_shared->kept_requests) >= ak_max_tracked_keys / 2)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many requests with a request_id may yet be given back"),
				 errhint("End transactions that verified with on_abort => 'refund' and a request_id, or raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_tracked_keys", ak_max_tracked_keys)));
}

/*
 * Charge a request to all its limits and remember it, or find that one refuses
 * it: then nothing has changed.  Nor has it if the request was charged before:
 * then charge->repeated is set.  The caller holds no lock.
 *
 * Sets each limit's count to what it is after the decision, and says which
 * refuse.  Waits for the worker where a ceiling, the history or the meter itself
 * asks for it.  Errors: 53000 if the worker does not come in time, 53400 if too
 * many requests are kept.
 */
AkOutcome
ak_meter_charge(AkCharge *charge, AkRecord *record)
{
	AkDatabase *db = ak_database_of(&charge->limits[0].key);
	AkPartitions partitions;
	AkWait		for_worker;
	AkWait		for_room;
	bool		may_drop = record->touch_only || db->stalled ||
		ak_history_overflow == AK_OVERFLOW_DROP;
	bool		nudge = false;
	int			missing = 0;
	int			loads = 0;
	ChargeResult result;

	check_kept_requests(charge);
	ak_partitions_find(charge, &partitions);
	ak_wait_begin(&for_worker, db, ak_meter_timeout);
	ak_wait_begin(&for_room, db, ak_history_wait_timeout);
	for (;;)
	{
		ak_partitions_lock(&partitions);
		result = charge_locked(db, charge, record, may_drop, &missing, &nudge);
		ak_partitions_unlock(&partitions);

		if (result == CHARGED || result == EXCEEDED || result == REPEATED)
			break;
		if (result == MISSING && loads++ < AK_LOADS_MAX &&
			ak_load_missing(charge, missing))
			continue;
		loads = 0;
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
	if (nudge)
		ak_nudge(db);
	if (result == EXCEEDED)
		return refusal_of(charge);
	if (!nudge)
		ak_nudge_if_asleep(db);
	ak_history_pause(may_drop);
	return AK_VALID;
}
