/*-------------------------------------------------------------------------
 *
 * meter.h
 *	  What the files of the meter share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_METER_H
#define APIKEYS_METER_H

#include "apikeys.h"

/* meter_table.c; the caller holds the entry's partition, but to allocate. */
extern MeterEntry *ak_entry_find(const MeterKey *key);
extern uint32 ak_entry_allocate(void);
extern void ak_entry_insert(uint32 i, const MeterEntry *filled);
extern bool ak_entry_join(const MeterEntry *filled);
extern void ak_entry_free(uint32 i);
extern uint32 ak_entries_removed(const MeterKey *key);

/* meter_rate.c; likewise. */
extern void ak_rate_entry(MeterEntry *entry, const MeterKey *key, int64 arrival);
extern void ak_rate_begin(MeterEntry *entry, const MeterEntry *filled);
extern bool ak_rate_goes_along(const MeterEntry *entry);
extern void ak_rate_move(MeterEntry *from, MeterEntry *to);
extern int64 ak_rate_fill(const MeterEntry *entry);
extern bool ak_rate_is_filling(const MeterEntry *entry, TimestampTz now);
extern void ak_rate_follow_clock_by(MeterEntry *entry, int64 fill, TimestampTz now);
extern void ak_rate_follow_clock(MeterEntry *entry, TimestampTz now);

/* meter.c */
extern void ak_limit_count(AkLimit *limit, const MeterEntry *entry);
extern bool ak_see_limit(AkDatabase *db, MeterEntry *entry, int64 limit);

static inline bool
ak_has_rate(const MeterEntry *entry)
{
	return entry->fill != AK_NO_RATE;
}

static inline bool
ak_is_quota(const MeterKey *key)
{
	return key->period < AK_CREDITS;
}

static inline bool
ak_same_subject(const MeterKey *a, const MeterKey *b)
{
	return memcmp(&a->subject_id, &b->subject_id, UUID_LEN) == 0 &&
		a->generation == b->generation && a->database == b->database &&
		a->is_user == b->is_user;
}

static inline AkDatabase *
ak_database_of(const MeterKey *key)
{
	return &ak_shared->databases[key->database];
}

/* What comes of an attempt, under the locks, to charge or to change. */
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

/*
 * The partitions of a charge's limits, in the order in which they are locked:
 * its subjects are a key and at most its user.
 */
typedef struct AkPartitions
{
	int			n;
	LWLock	   *locks[2];
} AkPartitions;

/* meter_load.c */
extern void ak_mark_dirty(AkDatabase *db, MeterEntry *entry);
extern void ak_ask_for_write(AkDatabase *db, MeterEntry *entry);
extern void ak_partitions_find(const AkCharge *charge, AkPartitions *partitions);
extern void ak_partitions_lock(const AkPartitions *partitions);
extern void ak_partitions_unlock(const AkPartitions *partitions);

/*
 * So often what is missing is loaded without a decision.  Where hardly anything
 * can be evicted, the limits of one charge may evict each other: then it waits.
 */
#define AK_LOADS_MAX (2 * AK_LIMITS_MAX)

/* Instead of the number of a limit: the request itself has no entry yet. */
#define AK_MISSING_REQUEST (-1)

extern bool ak_load_missing(const AkCharge *charge, int missing);

/* meter_change.c; the caller holds the entry's partition. */
extern bool ak_can_change(const MeterEntry *entry);
extern bool ak_is_refill_due(const AkLimit *limit, const MeterEntry *entry);
extern int64 ak_charged_after_refill(const AkLimit *limit, int64 charged);
extern void ak_refill(AkDatabase *db, const AkLimit *limit, MeterEntry *entry);

#endif							/* APIKEYS_METER_H */
