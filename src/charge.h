/*-------------------------------------------------------------------------
 *
 * charge.h
 *	  A request as a charge to its limits, and the meter that holds it to them.
 *
 * Entries are in shared memory, and guarded by the partition of their subject; a
 * charge is the caller's own.  Amounts and costs are requests or credits; times of
 * rates are nanoseconds since 2000.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_CHARGE_H
#define APIKEYS_CHARGE_H

#include "port/atomics.h"

#include "history.h"
#include "subject.h"

#define AK_LIMITS_MAX (2 + 3 * AK_RATES_MAX)	/* that one request is held to */

/* What one request can cost. */
#define AK_COST_MAX ((int64) 1 << 31)

/* What a count can be adjusted to: what is reckoned from it cannot overflow. */
#define AK_ADJUST_MAX ((int64) 1 << 61)

/* Where a count is: a subject's, in this database, of a period. */
typedef struct MeterKey
{
	pg_uuid_t	subject_id;
	TimestampTz period_start;	/* of a rate: the hash of its name */
	uint32		generation;		/* of the database's slot */
	uint16		database;		/* index of the slot */
	uint8		period;			/* AkPeriod, or AK_RATE */
	uint8		is_user;
} MeterKey;

#define AK_RATE 255

/* That a request was charged, by the hash of its id (period_start). */
#define AK_REQUEST 254

/*
 * One count: a subject in a period, and with it the state of one rate of the
 * same subject, so that a key with a quota and a rate takes one entry.  Other
 * rates have an entry each.  Guarded by the subject's partition.
 *
 * Two counts are kept: "charged" is what the limit is held against, "lost" is
 * the part of it that nobody consumed but a crash cost; their difference is
 * what is billed.
 *
 * Of credits, a refill takes off "charged" and off "lost" alike: what is left of
 * the grants rises, what is billed does not change.
 *
 * Of a rate, "arrival" is the theoretical arrival time of the next request (see
 * rate.c), "given_back" is all that was ever taken off it again, "fill" says how
 * far ahead of now it can be, and "life" tells one stay of the rate in memory
 * from another.  With AK_NO_RATE there is no rate in this entry.  An entry of its
 * own (AK_RATE) uses nothing else.
 *
 * Of a request's id, "charged" is when it was charged, or 0: see request_id.c.
 *
 * A change that is not a charge (a refill, an adjustment, the settlement of a
 * reservation, a write that has failed) is counted in "changes", and
 * acknowledged once it is durable: "changes_written" has caught up.
 */
typedef struct MeterEntry
{
	MeterKey	key;
	int64		charged;
	int64		lost;
	int64		ceiling;		/* durable: admission stays at or below it */
	int64		written;		/* charged as durable; AK_UNWRITTEN: no row */
	int64		limit;			/* last one seen; -1: unlimited */
	int64		arrival;		/* ns since 2000 */
	int64		given_back;		/* ns */
	int64		rate_name;		/* hash */
	uint32		wanted;			/* a caller waits to charge as much */
	union
	{
		uint32		refilled;	/* of credits: mark of the last refill; see
								 * credits.c */
		uint32		life;		/* of the rate, beside a quota or by itself */
	};
	uint32		next;			/* in its bucket, or in the free list */
	uint32		next_dirty;		/* on its way to the worker */
	uint32		refundable:26;	/* charges that may yet be given back: the
								 * entry stays */
	uint32		fill:6;			/* log2 of the ns that the rate takes to fill,
								 * rounded up */
	bool		in_use:1;
	bool		dirty:1;		/* the worker has it, or it is on its way */
	bool		recent:1;		/* used since the clock hand came by */
	bool		raise_asked:1;	/* the worker was asked for a ceiling */
	uint16		last_write:12;	/* the worker's pass that last wrote the row; 0:
								 * none since it was read */
	uint8		changes;
	uint8		changes_written;
} MeterEntry;

StaticAssertDecl(sizeof(MeterEntry) == 120, "an entry takes 120 bytes");

#define AK_NO_RATE 0
#define AK_FILL_UNKNOWN 63		/* no request has said it yet */

#define AK_UNWRITTEN PG_INT64_MIN

#define AK_LAST_WRITE_MAX 4095	/* then last_write begins anew, with 1 */

typedef struct AkCount
{
	int64		charged;
	int64		billed;
} AkCount;

/* A limit that a request is held to. */
typedef struct AkLimit
{
	MeterKey	key;
	const char *name;
	int64		cost;			/* 0: only looked at */
	int64		amount;			/* a quota's requests per period, -1: unlimited;
								 * a rate's burst; the credits granted */
	AkRate		rate;			/* of a rate */
	int64		refill_amount;	/* of credits; 0: they do not refill */
	uint32		refill_due;		/* mark of the last refill that is due, or 0 */
	TimestampTz refill_next;	/* when the next one is, DT_NOEND: never */
	int64		lost;			/* of credits: the entry's, when charged */
	int64		arrival;		/* of a rate: its own then, and given_back */
	uint32		life;			/* of a rate: its own then */
	int64		used;			/* of a reservation that is settled */
	bool		refuses;		/* set by the decision, as is the next */
	AkCount		count;			/* after it */
} AkLimit;

static inline bool
ak_limit_is_rate(const AkLimit *limit)
{
	return limit->key.period == AK_RATE;
}

static inline bool
ak_limit_is_credits(const AkLimit *limit)
{
	return limit->key.period == AK_CREDITS;
}

/* A request and all its limits: all are charged, or none. */
typedef struct AkCharge
{
	TimestampTz now;			/* wall clock */
	AkSpan		span;			/* the quota's period */
	bool		refundable;		/* given back if the transaction aborts */
	bool		by_hand;		/* an adjustment, see adjust.c */
	bool		changed;		/* set by ak_meter_change() */
	bool		has_request;	/* the next two are set */
	MeterKey	request;		/* charged once, however often it comes */
	bool		repeated;		/* it was charged before: nothing was now */
	int			nskipped;		/* rates that do not apply by themselves */
	const char *skipped[AK_LIMITS_MAX];
	int			nlimits;		/* the first is the quota */
	AkLimit		limits[AK_LIMITS_MAX];
} AkCharge;

/* What ak_meter_change() does to the counts of a charge. */
typedef enum AkChange
{
	AK_REFILL,					/* only what is due */
	AK_ADJUST,					/* add each limit's cost, which has a sign */
	AK_SETTLE,					/* keep each limit's "used" of its cost, give
								 * the rest back */
	AK_RELEASE					/* the same, but nobody waits until that is
								 * durable */
} AkChange;

/* meter.c; the caller holds no lock, but for an entry its partition. */
extern void ak_meter_key(MeterKey *key, const AkCatalog *catalog,
						 const pg_uuid_t *subject_id, bool is_user,
						 uint8 period, TimestampTz period_start);
extern void ak_meter_expect_bucket(const pg_uuid_t *key_id);
extern void ak_meter_expect_entry(const pg_uuid_t *key_id);
extern AkOutcome ak_meter_charge(AkCharge *charge, AkRecord *record);
extern int64 ak_meter_step(const MeterEntry *entry);
extern int64 ak_meter_headroom(const MeterKey *key, int64 limit);
extern bool ak_is_unlimited(const MeterKey *key, int64 limit);

/* meter_change.c; the caller holds no lock. */
extern bool ak_meter_change(AkCharge *charge, AkChange change);
extern bool ak_meter_release(AkCharge *charge);
extern void ak_meter_settle(const AkCharge *charge, bool give_back);

/* meter_load.c; the caller holds no lock. */
extern void ak_meter_look(AkCharge *charge);
extern uint32 ak_meter_take_dirty(AkDatabase *db);
extern uint32 ak_meter_take_asked(AkDatabase *db, uint32 asked[AK_ASKED_MAX]);

/* meter_rate.c; the meter is closed. */
typedef void (*AkEntryVisitor) (const MeterEntry *entry, void *arg);

extern void ak_meter_put_rate(const MeterKey *key, int64 arrival);
extern void ak_meter_each_rate(uint32 generation, AkEntryVisitor visit,
							   void *arg);

/* meter_table.c */
extern Size ak_meter_shmem_size(void);
extern void ak_meter_shmem_init(bool found);
extern LWLock *ak_partition_lock(const MeterKey *key);
extern void ak_meter_forget(uint32 generation, bool closing);
extern void ak_meter_barrier(void);

/* usage_row.c; the caller holds no lock. */
extern bool ak_usage_row(const MeterKey *key, int64 limit, MeterEntry *entry);
extern int64 ak_rate_mark(const MeterKey *key);
extern TimestampTz ak_crash_horizon(const AkCatalog *catalog,
									const pg_uuid_t *subject_id);

/* ----- request_id.c ----- */

extern void ak_request_key(MeterKey *key, const AkCatalog *catalog,
						   const pg_uuid_t *key_id, const char *request_id);
extern TimestampTz ak_request_row(const MeterKey *key);
extern bool ak_request_is_known(const MeterEntry *entry, TimestampTz now);

/* ----- which limits a request is held to, and what they say ----- */

typedef struct AkNamedCost
{
	char		name[AK_LIMIT_NAME_LEN];
	int64		cost;
	bool		found;			/* there is a limit of this name */
} AkNamedCost;

/* The argument "charges". */
typedef struct AkNamedCosts
{
	int			n;
	AkNamedCost costs[AK_LIMITS_MAX];
	char		request_id[AK_ID_LEN];	/* empty: none */
} AkNamedCosts;

/* charges.c */
extern void ak_charges_read(Datum json, AkNamedCosts *costs);

/* limits.c */
extern void ak_charge_prepare(AkCharge *charge, const AkKey *key,
							  const AkSubject *subject, int64 cost,
							  AkNamedCosts *costs, bool all, TimestampTz now);
extern void ak_credits_limit(AkLimit *limit, const AkCredits *credits,
							 const pg_uuid_t *subject_id, bool is_user,
							 int64 cost, TimestampTz now);
extern const AkLimit *ak_charge_credits(const AkCharge *charge);
extern bool ak_charge_is_free(const AkCharge *charge);

/* limits_show.c */
extern int64 ak_limit_remaining(const AkCharge *charge, const AkLimit *limit);
extern TimestampTz ak_charge_retry_at(const AkCharge *charge);
extern Datum ak_charge_show(const AkCharge *charge);

/* credits.c */
extern bool ak_refill_at(const AkCredits *credits, TimestampTz now,
						 AkSpan *span);
extern uint32 ak_refill_mark(TimestampTz at);

/* ----- rate.c: the arithmetic of rates ----- */

extern bool ak_rate_make(int64 amount, const Interval *period, int64 burst,
						 AkRate *rate);
extern void ak_rate_key(MeterKey *key, const char *name);
extern bool ak_rate_admits(const AkRate *rate, int64 arrival, int64 cost,
						   TimestampTz now);
extern int64 ak_rate_charge(const AkRate *rate, int64 arrival, int64 cost,
							TimestampTz now);
extern int64 ak_rate_settle(const AkRate *rate, int64 cost, int64 used,
							TimestampTz charged_at, int64 arrival_then,
							TimestampTz now);
extern int64 ak_rate_remaining(const AkRate *rate, int64 arrival,
							   TimestampTz now);
extern TimestampTz ak_rate_full_at(const AkRate *rate, int64 arrival,
								   TimestampTz now);
extern bool ak_rate_is_full(int64 arrival, TimestampTz now);
extern TimestampTz ak_rate_retry_at(const AkRate *rate, int64 arrival,
									int64 cost, TimestampTz now);
extern int64 ak_rate_after_crash(const AkRate *rate, TimestampTz crash);

/* ----- refund.c ----- */

extern void ak_refund_prepare(const AkCharge *charge);
extern void ak_refund_keep(const AkCharge *charge);
extern void ak_refund_drop(void);

#endif							/* APIKEYS_CHARGE_H */
