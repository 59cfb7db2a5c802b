/*-------------------------------------------------------------------------
 *
 * meter_rate.c
 *	  Where the state of a rate is: with a count of its subject, if one has
 *	  room, or in an entry by itself.
 *
 * A rate is in one place at a time, and found there by its subject and name
 * (ak_entry_find()).  It leaves an entry only while nothing of it can be given
 * back, and takes its life along.  What it says is known to memory alone until
 * it is full again, so its entry stays as long.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bitutils.h"

#include "meter.h"

/* An entry with nothing but a rate. */
void
ak_rate_entry(MeterEntry *entry, const MeterKey *key, int64 arrival)
{
	memset(entry, 0, sizeof(MeterEntry));
	entry->key = *key;
	entry->arrival = arrival;
	entry->rate_name = key->period_start;
	entry->fill = AK_FILL_UNKNOWN;
	entry->in_use = true;
	entry->recent = true;
}

static void
put(MeterEntry *entry, const MeterEntry *from, uint32 life)
{
	entry->arrival = from->arrival;
	entry->given_back = from->given_back;
	entry->rate_name = from->rate_name;
	entry->fill = from->fill;
	entry->life = life;
}

/* A rate that was not in memory has come into an entry. */
void
ak_rate_begin(MeterEntry *entry, const MeterEntry *filled)
{
	put(entry, filled, ak_entries_removed(&filled->key) + 1);
}

/*
 * Whether a rate goes along where another quota of its subject follows: not if
 * it was full when its own quota's period began, since it may be one that is no
 * more.
 */
bool
ak_rate_goes_along(const MeterEntry *entry)
{
	return ak_has_rate(entry) &&
		(entry->key.period == AK_RATE ||
		 !ak_rate_is_full(entry->arrival, entry->key.period_start));
}

/* Move a rate.  The caller holds the partition. */
void
ak_rate_move(MeterEntry *from, MeterEntry *to)
{
	put(to, from, from->life);
	from->fill = AK_NO_RATE;
	from->life = 0;
}

/* A rate that is not full again is known to memory alone. */
bool
ak_rate_is_filling(const MeterEntry *entry, TimestampTz now)
{
	return ak_has_rate(entry) && !ak_rate_is_full(entry->arrival, now);
}

/* How many ns an entry's rate takes to fill at most, as far as is known. */
int64
ak_rate_fill(const MeterEntry *entry)
{
	return entry->fill == AK_FILL_UNKNOWN ? PG_INT64_MAX :
		INT64CONST(1) << entry->fill;
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
static void
follow_clock(MeterEntry *entry, int64 fill, TimestampTz now)
{
	if (entry->arrival - now * 1000 > fill)
		entry->arrival = Min(entry->arrival,
							 GetCurrentTimestamp() * 1000 + fill);
}

/*
 * The same, to a rate that takes so many ns to fill.  The entry remembers it,
 * rounded up to a power of two.
 */
void
ak_rate_follow_clock_by(MeterEntry *entry, int64 fill, TimestampTz now)
{
	entry->fill = Max(pg_ceil_log2_64(fill), AK_NO_RATE + 1);
	follow_clock(entry, fill, now);
}

/* The same, by what the entry remembers. */
void
ak_rate_follow_clock(MeterEntry *entry, TimestampTz now)
{
	if (ak_has_rate(entry))
		follow_clock(entry, ak_rate_fill(entry), now);
}

/* Put a rate into a closed meter.  Errors: 53400 if there is no room. */
void
ak_meter_put_rate(const MeterKey *key, int64 arrival)
{
	LWLock	   *lock = ak_partition_lock(key);
	uint32		i = ak_entry_allocate();
	MeterEntry	entry;

	if (i == AK_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the meter has no room for a rate"),
				 errhint("Raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_tracked_keys", ak_max_tracked_keys)));
	ak_rate_entry(&entry, key, arrival);
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

		if (!entry.in_use || entry.key.generation != generation)
			continue;
		ak_rate_follow_clock(&entry, now);
		if (ak_rate_is_filling(&entry, now))
			visit(&entry, arg);
	}
}
