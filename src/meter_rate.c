/*-------------------------------------------------------------------------
 *
 * meter_rate.c
 *	  Where the state of a rate is: with a count of its subject, if one has
 *	  room, or in an entry by itself.
 *
 * A rate is in one place at a time, and found there by its subject and name
 * (ak_entry_find()).  It moves only while nothing of its entry can be given
 * back.  What it says is known to memory alone until it is full again, so its
 * entry stays as long.
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
}

static void
put(MeterEntry *entry, const MeterEntry *filled, uint32 life)
{
	entry->arrival = filled->arrival;
	entry->given_back = filled->given_back;
	entry->rate_name = filled->rate_name;
	entry->fill = filled->fill;
	entry->life = life;
}

/*
 * Put a rate to a count of its subject.  False if none has room.  The caller
 * holds the partition, and has looked that the rate is nowhere.
 */
bool
ak_rate_insert(const MeterEntry *filled)
{
	uint32		i = ak_bucket_first(&filled->key);

	while (i != AK_NONE)
	{
		MeterEntry *entry = &ak_shared->entries[i];

		if (ak_is_quota(&entry->key) && !ak_has_rate(entry) &&
			ak_same_subject(&entry->key, &filled->key))
		{
			put(entry, filled, ak_entries_removed(&filled->key) + 1);
			return true;
		}
		i = entry->next;
	}
	return false;
}

/*
 * Move a rate from a count whose period has ended to the one that follows,
 * unless it can be given back, or was not used in that period: it may be one
 * that is no more.  The caller holds the partition.
 */
void
ak_rate_move(MeterEntry *ended, MeterEntry *entry)
{
	if (!ak_has_rate(ended) || ak_has_rate(entry) || ended->refundable > 0 ||
		ak_rate_is_full(ended->arrival, ended->key.period_start))
		return;
	put(entry, ended, ended->life);
	ended->fill = AK_NO_FILL;
	ended->life = 0;
}

/* A rate that is not full again is known to memory alone. */
bool
ak_rate_is_filling(const MeterEntry *entry, TimestampTz now)
{
	return ak_has_rate(entry) && !ak_rate_is_full(entry->arrival, now);
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
	entry->fill = Max(pg_ceil_log2_64(fill), AK_NO_FILL + 1);
	follow_clock(entry, fill, now);
}

/* The same, by what the entry remembers. */
void
ak_rate_follow_clock(MeterEntry *entry, TimestampTz now)
{
	if (ak_has_rate(entry) && entry->fill != AK_FILL_UNKNOWN)
		follow_clock(entry, INT64CONST(1) << entry->fill, now);
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

		ak_rate_follow_clock(&entry, now);
		if (entry.in_use && entry.key.generation == generation &&
			ak_rate_is_filling(&entry, now))
			visit(&entry, arg);
	}
}
