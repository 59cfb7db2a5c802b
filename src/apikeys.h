/*-------------------------------------------------------------------------
 *
 * apikeys.h
 *	  What the files of apikeys share.
 *
 * A verification goes through the files in this order:
 *
 *	  verify.c		 the decision, in the order of the outcomes
 *	  secret.c		 parse the secret, make its digest
 *	  find_key.c	 find the key's row (hints.c: where it was last time)
 *	  subject.c		 find its user and its plan (users.c, lookup.c)
 *	  permissions.c	 what the key may do (expression.c parses the question),
 *	  address.c		 and from where
 *	  limits.c		 the limits it is held to (period.c: which period is now;
 *					 credits.c: when they refill)
 *	  meter.c		 count, in shared memory
 *	  history.c		 remember, in shared memory
 *	  current.c		 who is calling, for the rest of the transaction
 *
 * http.c asks on behalf of an HTTP request, which PostgREST describes in
 * settings (http_address.c, http_headers.c).
 *
 * and one background worker a database (launcher.c, worker.c) makes the last
 * two durable (flush.c, flush_history.c), counts by hour and day (rollup.c)
 * and tidies up (maintain.c).
 *
 * Locks, in the order in which they may be taken together:
 *
 *	  control		 the array of databases: which slot is whose, its worker
 *	  reservations	 the reservations of all databases
 *	  partition		 the meter's entries of the subjects that hash to it
 *	  lane			 one lane of a database's history, and its statistics
 *	  free_lock		 spinlock: the free entries and the free chunks
 *
 * A backend holds at most two partitions at a time, in the order of their
 * addresses, the worker at most one.  No code that can raise an error,
 * allocate or check for interrupts runs between the first and the last store
 * to shared memory under a partition or lane lock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_H
#define APIKEYS_H

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "nodes/plannodes.h"
#include "port/atomics.h"
#include "storage/buf.h"
#include "storage/condition_variable.h"
#include "storage/itemptr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/array.h"
#include "utils/inet.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "expression.h"

/* The SQL objects this library works with: pg_extension.extversion. */
#define AK_VERSION "1.0"

/* Longest identifier of a plan, api or user, in bytes, with its zero. */
#define AK_ID_LEN 256

/* ----- secret.c ----- */

#define AK_PREFIX_MAX 32
#define AK_SECRET_RANDOM 32		/* base62 characters drawn at random */
#define AK_SECRET_CHECK 6		/* base62 characters of checksum */
#define AK_SECRET_TAIL (AK_SECRET_RANDOM + AK_SECRET_CHECK)
#define AK_SECRET_MAX (AK_PREFIX_MAX + 1 + AK_SECRET_TAIL)
#define AK_START_RANDOM 4		/* random characters shown in "start" */
#define AK_DIGEST_LEN 32

/* Not isalnum(): the server's locale has no say in what a secret is. */
static inline bool
ak_is_base62(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
		(c >= 'a' && c <= 'z');
}

extern bool ak_prefix_is_valid(const char *prefix);
extern bool ak_secret_is_well_formed(const char *secret, int length);
extern void ak_secret_make(const char *prefix, char secret[AK_SECRET_MAX + 1]);
extern int	ak_secret_start_length(const char *secret);
extern void ak_secret_digest(const char *secret, int length,
							 uint8 digest[AK_DIGEST_LEN]);
extern void ak_uuidv7(pg_uuid_t *uuid);
extern char *ak_uuid_text(const pg_uuid_t *uuid);

/* ----- period.c ----- */

typedef enum AkPeriod
{
	AK_MINUTE,
	AK_HOUR,
	AK_DAY,
	AK_WEEK,
	AK_MONTH,
	AK_YEAR,
	AK_CREDITS					/* for ever: no plan's */
} AkPeriod;

typedef struct AkSpan
{
	TimestampTz start;			/* first moment of the period */
	TimestampTz end;			/* first moment of the next one */
} AkSpan;

extern const char *ak_period_name(AkPeriod period);
extern bool ak_period_parse(const char *name, AkPeriod *period);
extern void ak_period_at(AkPeriod period, TimestampTz anchor, TimestampTz now,
						 AkSpan *span);
extern void ak_months_at(int unit, TimestampTz anchor, TimestampTz now,
						 AkSpan *span);
extern void ak_fixed_at(int64 length, TimestampTz anchor, TimestampTz now,
						AkSpan *span);

/* No anchor: the calendar, in UTC. */
#define AK_CALENDAR DT_NOBEGIN

/* ----- outcomes, in the order in which they are decided ----- */

typedef enum AkOutcome
{
	AK_MALFORMED,
	AK_NOT_FOUND,
	AK_DISABLED,
	AK_EXPIRED,
	AK_FORBIDDEN,
	AK_INSUFFICIENT_PERMISSIONS,
	AK_RATE_LIMITED,
	AK_USAGE_EXCEEDED,
	AK_VALID,

	/* Of a reservation that was admitted; its record has a negative cost. */
	AK_SETTLED,
	AK_RELEASED
} AkOutcome;

#define AK_OUTCOMES (AK_RELEASED + 1)

extern const char *ak_outcome_name(AkOutcome outcome);

/* ----- database.c: what shared memory holds of a database ----- */

#define AK_PARTITIONS 128
#define AK_ASKED_MAX 128
#define AK_LANES 8

/*
 * One lane of a database's history: chunks in a list, the last being filled.
 * Everything is guarded by the lane's lock.  Backends spread over the lanes.
 */
typedef struct AkLane
{
	uint32		head;			/* oldest chunk, or AK_NONE */
	uint32		tail;			/* chunk being filled */
	uint32		consumed;		/* bytes of the head that are durable */
	uint64		outcomes[AK_OUTCOMES];	/* verifications since the start */
	uint64		dropped;		/* history records lost to a full buffer */
	uint64		unrecorded;		/* verifications on a standby */
} AkLane;

#define AK_NONE PG_UINT32_MAX

typedef union AkLanePadded
{
	AkLane		lane;
	char		pad[2 * PG_CACHE_LINE_SIZE];
} AkLanePadded;

/*
 * The last transaction of a database's worker that failed, for monitoring.
 */
typedef struct AkFailure
{
	TimestampTz at;				/* 0: none yet */
	int			sqlerrcode;
	char		message[256];
} AkFailure;

/*
 * One database with one installation of the extension.  Guarded by the control
 * lock, except where it says otherwise.
 */
typedef struct AkDatabase
{
	Oid			dboid;			/* InvalidOid: the slot is free */
	Oid			extension;		/* pg_extension.oid: another installation is
								 * another database to us */
	uint32		generation;		/* never the same for two uses of a slot */
	PGPROC	   *worker;			/* the worker attached, or NULL */
	bool		worker_wanted;	/* the launcher shall start one */
	bool		step_aside;		/* the worker shall leave at once */
	int			held_by;		/* backend that needs the database empty */

	/*
	 * Whether admission may go on: a worker is attached and its incarnation
	 * is durable.  Set by the worker; when it clears it, it then passes
	 * through every partition and lane, so that who has read it under one of
	 * those locks is done.
	 */
	bool		open;
	bool		worker_awake;	/* the worker looks by itself; see ak_nudge */
	bool		urgent;			/* somebody waits for a ceiling; no lock */
	bool		history_urgent; /* the history buffer fills up; no lock */
	bool		incarnation_open;	/* begun, not ended; the worker's own */
	bool		stalled;		/* history cannot be written: do not wait for
								 * space, try at intervals; no lock */
	uint32		opened;			/* how often; written before "open", like the
								 * next two */
	pg_uuid_t	incarnation;
	TimestampTz crash_horizon;	/* periods begun before this may have lost
								 * counts to a crash */
	pg_atomic_uint64 seen;		/* latest wall clock used for a period */
	pg_atomic_uint32 dirty;		/* list of entries new to the worker */
	slock_t		asked_lock;
	uint32		nasked;			/* entries to be written soon; if they are more
								 * than AK_ASKED_MAX, any may be */
	uint32		asked[AK_ASKED_MAX];
	pg_atomic_uint32 refundable;	/* transactions that may yet give back */
	pg_atomic_uint32 reserved;	/* reservations that are held */
	dlist_head	held;			/* these; reservations lock */
	TimestampTz held_until;		/* no deadline of theirs is before this; set
								 * under reservations lock */
	TimestampTz last_written;	/* latest clock in a row of apikeys.usage */
	uint64		usage_rows;		/* written; statistics, the worker's own */
	uint64		history_rows;
	uint64		ceilings_raised;	/* rows written because somebody asked */
	uint64		flush_failures;
	AkFailure	last_failure;
	int64		last_flush;		/* by ak_elapsed(); 0: none yet */

	/*
	 * For the lag, by ak_elapsed(), without a lock: what was there at that
	 * moment is durable, or was not due; and since when a worker that had
	 * nothing to do is called (0: it is not).  See health.c.
	 */
	int64		counts_flushed;
	int64		history_flushed;
	int64		called_at;
	uint32		ntracked;		/* counts the worker looks after */
	uint64		rollup_rows;	/* written; the worker's own, as all of these */
	uint64		rollup_pending; /* counts in apikeys.rollup_journal */
	uint32		uses_pending;	/* keys whose last_used_at is due */
	pg_uuid_t	rollup_tidied;	/* the key that tidying has come to */
	bool		rollup_tidying; /* it is under way */
	TimestampTz rollup_tidied_at;	/* its last end, how long it takes, and how
									 * long it then pauses */
	int64		rollup_tidy_time;
	int64		rollup_tidy_pause;
	uint64		charge_waits;	/* no lock, approximate */
	ConditionVariable changed;	/* opened, a ceiling moved, space freed */
	AkLanePadded lanes[AK_LANES];
} AkDatabase;

/* Prefixes of keys that are known to redact.c. */
#define AK_PREFIXES 64

typedef struct AkShared
{
	PGPROC	   *launcher;
	uint32		next_generation;	/* control lock */
	bool		slot_wanted;	/* somebody found no slot; control lock */
	dlist_head	ended;			/* reservations that have, oldest first;
								 * reservations lock */
	slock_t		free_lock;
	uint32		free_entry;		/* heads of free lists; free_lock */
	uint32		free_chunk;
	uint32		nfree_chunks;
	pg_atomic_uint32 hand;		/* clock hand of the eviction */
	pg_atomic_uint64 evictions;
	int64		no_room_at;		/* somebody found no entry; no lock */
	pg_atomic_uint32 nprefixes; /* that redact.c knows; set under control */
	char		prefixes[AK_PREFIXES][AK_PREFIX_MAX + 1];
	LWLock	   *control;
	LWLock	   *reservations;
	LWLockPadded *partitions;
	LWLockPadded *lane_locks;
	struct MeterEntry *entries;
	char	   *chunks;
	AkDatabase	databases[FLEXIBLE_ARRAY_MEMBER];
} AkShared;

extern AkShared *ak_shared;

extern void ak_shmem_request(void);
extern void ak_shmem_startup(void);
extern AkDatabase *ak_database_acquire(Oid dboid, Oid extension);
extern void ak_database_release(AkDatabase *db);
extern void ak_database_forget(Oid dboid, Oid except_extension);
extern void ak_database_hold(Oid dboid);
extern void ak_database_unhold(void);
extern int	ak_database_index(AkDatabase *db);
extern LWLock *ak_lane_lock(AkDatabase *db, int lane);
extern void ak_nudge(AkDatabase *db);
extern void ak_nudge_if_asleep(AkDatabase *db);

/* ----- hints.c ----- */

/* Where the row of a digest was found. */
typedef struct AkHint
{
	ItemPointerData root;		/* of its chain of updates */
	Buffer		buffer;			/* of its page then; InvalidBuffer: not known */
} AkHint;

extern Size ak_hints_shmem_size(void);
extern void ak_hints_shmem_init(bool found);
extern bool ak_hint_find(const uint8 digest[AK_DIGEST_LEN], AkHint *hint);
extern void ak_hint_keep(const uint8 digest[AK_DIGEST_LEN],
						 const AkHint *hint);

/* ----- clock.c ----- */

extern int64 ak_elapsed(void);
extern long ak_ms_until(int64 elapsed);
extern TimestampTz ak_database_clock(AkDatabase *db, TimestampTz now);

/* ----- catalog.c: the extension's own objects, by OID ----- */

typedef enum AkKeyColumn
{
	AK_KEY_ID,
	AK_KEY_API_ID,
	AK_KEY_NAME,
	AK_KEY_USER_ID,
	AK_KEY_PLAN_ID,
	AK_KEY_ENABLED,
	AK_KEY_DIGEST,
	AK_KEY_PREVIOUS_DIGEST,
	AK_KEY_PREVIOUS_EXPIRES_AT,
	AK_KEY_PERMISSIONS,
	AK_KEY_ALLOWED_IPS,
	AK_KEY_METADATA,
	AK_KEY_EXPIRES_AT,
	AK_KEY_CREATED_AT,
	AK_KEY_UPDATED_AT,
	AK_KEY_DELETED_AT,
	AK_KEY_HAS_LIMITS,
	AK_KEY_ROLES,
	AK_KEY_CREDITS,
	AK_KEY_REFILL_AMOUNT,
	AK_KEY_REFILL_EVERY,
	AK_KEY_REFILL_DAY,
	AK_KEY_REFILL_SINCE,
	AK_KEY_FENCED_AT
} AkKeyColumn;

#define AK_KEY_COLUMNS (AK_KEY_FENCED_AT + 1)

typedef struct AkCatalog
{
	Oid			extension;
	Oid			keys,
				keys_digest_key,
				keys_previous_digest_key,
				keys_pkey,
				keys_user_id_idx;
	Oid			plans,
				plans_pkey;
	Oid			users,
				users_pkey;
	Oid			apis,
				apis_pkey;
	Oid			roles,
				roles_pkey;
	Oid			usage,
				usage_pkey;
	Oid			incarnations,
				incarnations_pkey;
	Oid			limits,
				limits_plan_id_key,
				limits_user_id_key,
				limits_key_id_key;
	Oid			rate_marks,
				rate_marks_pkey;
	Oid			requests;
	Oid			request_ids,
				request_ids_pkey;
	AttrNumber	keys_attnum[AK_KEY_COLUMNS];
	AkDatabase *db;				/* this database's slot */
	uint32		generation;		/* of the slot when it was acquired */
} AkCatalog;

extern const AkCatalog *ak_catalog(void);
extern bool ak_catalog_is(Oid extension);
extern uint64 ak_catalog_changes(void);
extern Oid	ak_functions_schema(void);
extern void ak_catalog_announce(Oid relid);
extern void ak_catalog_updated(void);

/* ----- limits.c ----- */

#define AK_LIMIT_NAME_LEN 64	/* bytes of a limit's name, with its zero */
#define AK_RATES_MAX 8			/* rates that one plan, user or key can set */
#define AK_LIMITS_MAX (2 + 3 * AK_RATES_MAX)	/* that one request is held to */

#define AK_COST_MAX ((int64) 1 << 31)

/* What a count can be adjusted to: what is reckoned from it cannot overflow. */
#define AK_ADJUST_MAX ((int64) 1 << 61)

/* A rate, as apikeys.limits has it. */
typedef struct AkRate
{
	char		name[AK_LIMIT_NAME_LEN];
	int64		emission;		/* ns from one request to the next */
	int64		burst;			/* requests at once */
	int64		amount;			/* as it is set: so many requests */
	int64		period;			/* in so many µs */
	bool		auto_apply;		/* also where the call does not name it */
	TimestampTz created_at;
} AkRate;

/* The rates of one plan, user or key. */
typedef struct AkRates
{
	int			n;
	AkRate	   *rates;
} AkRates;

typedef enum AkOwner
{
	AK_OWNER_PLAN,
	AK_OWNER_USER,
	AK_OWNER_KEY
} AkOwner;

extern void ak_rates_of(AkOwner owner, Datum id, MemoryContext context,
						AkRates *rates);

/* ----- credits.c ----- */

/* The credits of a key or a user, as their row has them. */
typedef struct AkCredits
{
	bool		is_limited;		/* else the rest is unset */
	int64		granted;		/* in all, but for what refills have added */
	int64		refill_amount;	/* 0: they do not refill */
	Interval	refill_every;
	int			refill_day;		/* 0: not chosen */
	TimestampTz refill_since;
} AkCredits;

extern bool ak_refill_at(const AkCredits *credits, TimestampTz now,
						 AkSpan *span);
extern uint32 ak_refill_mark(TimestampTz at);

/* ----- remember.c, lookup.c, users.c, subject.c ----- */

typedef struct AkPlan
{
	char		id[AK_ID_LEN];
	bool		is_usable;		/* exists, active, not deleted */
	bool		is_deleted;
	char	   *name;
	int64		max_requests;	/* -1: unlimited */
	AkPeriod	period;
	bool		has_lifetime;
	Interval	lifetime;
	int32		max_keys_per_user;	/* -1: any number */
	AkRates		rates;			/* good until the next look-up of a plan */
	char		http_role[NAMEDATALEN]; /* empty: none */
} AkPlan;

typedef struct AkUser
{
	char		id[AK_ID_LEN];
	bool		exists;			/* has a row; else the rest is unset */
	bool		is_usable;		/* neither disabled nor deleted */
	bool		is_deleted;
	char		plan_id[AK_ID_LEN]; /* empty: none */
	TimestampTz custom_start;	/* AK_CALENDAR: none */
	pg_uuid_t	subject_id;
	AkCredits	credits;
	AkRates		rates;			/* good until the next look-up of a user */
} AkUser;

typedef struct AkApi
{
	char		id[AK_ID_LEN];
	bool		exists;
	char		default_plan_id[AK_ID_LEN]; /* empty: none */
	char		default_prefix[AK_PREFIX_MAX + 1];	/* empty: none */
	char		http_role[NAMEDATALEN]; /* empty: none */
} AkApi;

typedef struct AkRole
{
	char		name[AK_ID_LEN];
	bool		exists;			/* else the rest is unset */
	ArrayType  *permissions;
} AkRole;

typedef struct AkKey
{
	pg_uuid_t	id;
	Datum		values[AK_KEY_COLUMNS];
	bool		nulls[AK_KEY_COLUMNS];
	char		api_id[AK_ID_LEN];
	char		user_id[AK_ID_LEN]; /* empty: none */
	char		plan_id[AK_ID_LEN]; /* empty: none */
} AkKey;

/* Whose count a request goes to, and which limit holds for it. */
typedef struct AkSubject
{
	AkPlan		plan;			/* id empty: no plan, unlimited */
	AkUser		user;			/* id empty: the key has no user */
	bool		is_user;		/* metered for all keys of the user */
	pg_uuid_t	subject_id;
	TimestampTz anchor;
} AkSubject;

extern void ak_copy_id(char id[AK_ID_LEN], Datum value, bool isnull);
extern bool ak_key_by_digest(const uint8 digest[AK_DIGEST_LEN],
							 TimestampTz now, AkKey *key);
extern bool ak_key_by_id(const pg_uuid_t *id, AkKey *key);
extern void ak_key_must_exist(const pg_uuid_t *id, AkKey *key);
extern int	ak_count_live_keys(const char *user_id, int enough);
extern bool ak_plan_by_id(const char *id, AkPlan *plan);
extern bool ak_user_by_id(const char *id, AkUser *user);
extern void ak_user_hold(const char *id);
extern bool ak_api_by_id(const char *id, AkApi *api);
extern bool ak_role_by_name(const char *name, AkRole *role);
extern void ak_subject_of_key(const AkKey *key, AkSubject *subject);
extern void ak_subject_of_user(const AkUser *user, AkSubject *subject);
extern void ak_applicable_plan(const char *plan_id, const AkUser *user,
							   const char *api_id, AkPlan *plan,
							   bool *is_user);

/* ----- permissions.c ----- */

extern char *ak_permissions_expression(Datum value);
extern bool ak_permissions_hold(const char *expression, const AkHeld *held);
extern void ak_held_by_key(const AkKey *key, AkHeld *held);
extern void ak_check_permissions(ArrayType *array);

/* ----- address.c ----- */

extern void ak_address_unmap(inet_struct *address);
extern void ak_address_read(const inet *value, inet_struct *address);
extern bool ak_address_is_within(const inet_struct *address,
								 const inet_struct *network);

/* ----- meter.c ----- */

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
 * reservation) is counted in "changes", and acknowledged once it is durable:
 * "changes_written" has caught up.
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

struct AkRecord;

extern Size ak_meter_shmem_size(void);
extern void ak_meter_shmem_init(bool found);
extern void ak_meter_key(MeterKey *key, const AkCatalog *catalog,
						 const pg_uuid_t *subject_id, bool is_user,
						 uint8 period, TimestampTz period_start);
extern AkOutcome ak_meter_charge(AkCharge *charge, struct AkRecord *record);
extern void ak_meter_look(AkCharge *charge);
extern void ak_meter_settle(const AkCharge *charge, bool give_back);
extern bool ak_meter_change(AkCharge *charge, AkChange change);
extern bool ak_meter_release(AkCharge *charge);
extern void ak_meter_forget(uint32 generation, bool closing);
extern void ak_meter_put_rate(const MeterKey *key, int64 arrival);
typedef void (*AkEntryVisitor) (const MeterEntry *entry, void *arg);
extern void ak_meter_each_rate(uint32 generation, AkEntryVisitor visit,
							   void *arg);
extern int64 ak_meter_step(const MeterEntry *entry);
extern int64 ak_meter_headroom(const MeterKey *key, int64 limit);
extern bool ak_is_unlimited(const MeterKey *key, int64 limit);
extern LWLock *ak_partition_lock(const MeterKey *key);
extern void ak_meter_barrier(void);
extern uint32 ak_meter_take_dirty(AkDatabase *db);
extern uint32 ak_meter_take_asked(AkDatabase *db, uint32 asked[AK_ASKED_MAX]);
extern bool ak_usage_row(const MeterKey *key, int64 limit, MeterEntry *entry);
extern int64 ak_rate_mark(const MeterKey *key);

/* ----- request_id.c ----- */

extern void ak_request_key(MeterKey *key, const AkCatalog *catalog,
						   const pg_uuid_t *key_id, const char *request_id);
extern TimestampTz ak_request_row(const MeterKey *key);
extern bool ak_request_is_known(const MeterEntry *entry, TimestampTz now);
extern TimestampTz ak_crash_horizon(const AkCatalog *catalog,
									const pg_uuid_t *subject_id);

/* ----- limits.c, once more ----- */

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

extern const AkLimit *ak_charge_credits(const AkCharge *charge);
extern void ak_charges_read(Datum json, AkNamedCosts *costs);
extern void ak_charge_prepare(AkCharge *charge, const AkKey *key,
							  const AkSubject *subject, int64 cost,
							  AkNamedCosts *costs, bool all, TimestampTz now);
extern void ak_credits_limit(AkLimit *limit, const AkCredits *credits,
							 const pg_uuid_t *subject_id, bool is_user,
							 int64 cost, TimestampTz now);
extern bool ak_charge_is_free(const AkCharge *charge);
extern int64 ak_limit_remaining(const AkCharge *charge, const AkLimit *limit);
extern TimestampTz ak_charge_retry_at(const AkCharge *charge);
extern Datum ak_charge_show(const AkCharge *charge);

/* ----- refund.c ----- */

extern void ak_refund_prepare(const AkCharge *charge);
extern void ak_refund_keep(const AkCharge *charge);
extern void ak_refund_drop(void);

/* ----- reserve.c ----- */

#define AK_HOLDS_MAX 8			/* limits that one reservation is held to */

/* What a reservation holds of one limit. */
typedef struct AkHold
{
	MeterKey	key;
	int64		amount;			/* of a quota or of credits */
	int64		emission;		/* of a rate */
	int64		lost;			/* of credits, as in AkLimit */
	int64		arrival;		/* of a rate, as in AkLimit, unless the meter was
								 * closed meanwhile: then unset, with life 0 */
	uint32		life;
} AkHold;

typedef enum AkReservationState
{
	AK_PENDING,					/* being decided on */
	AK_HELD,
	AK_SETTLING,				/* claimed by who settles or releases it */
	AK_ENDED_SETTLED,			/* remembered until its deadline */
	AK_ENDED_RELEASED			/* likewise, for a while */
} AkReservationState;

/* A copy of a database holds reservations of the same ids. */
typedef struct AkReservationKey
{
	pg_uuid_t	id;
	uint32		generation;		/* of the database's slot */
} AkReservationKey;

typedef struct AkReservation
{
	AkReservationKey key;
	pg_uuid_t	key_id;
	AkReservationState state;
	dlist_node	node;			/* of its database's held ones, or of all
								 * that have ended */
	bool		is_written;		/* in the marks of a meter that was closed */
	TimestampTz charged_at;
	TimestampTz deadline;
	int64		max_cost;
	int			nholds;
	AkHold		holds[AK_HOLDS_MAX];
} AkReservation;

/* reservation_table.c, but the release */
extern Size ak_reservations_shmem_size(void);
extern void ak_reservations_shmem_init(void);
extern void ak_reservation_prepare(const AkReservationKey *key, TimestampTz now,
								   TimestampTz deadline);
extern void ak_reservations_release_due(AkDatabase *db);
extern int	ak_reservations_held(AkDatabase *db, bool closing,
								 AkReservation **held);
extern void ak_reservations_put(AkDatabase *db, const AkReservation *held);
extern void ak_reservations_forget(uint32 generation, bool closing);

/* ----- rate.c ----- */

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

/* ----- history.c ----- */

#define AK_CHUNK_SIZE 8192
#define AK_ENDPOINT_MAX 1024	/* bytes kept of an endpoint */
#define AK_METHOD_MAX 32		/* bytes kept of a method */
#define AK_TAGS_MAX 1024		/* bytes of all tags, lengths included */

/* A history record, as long as it needs to be; "length" is MAXALIGNed. */
typedef struct AkRecord
{
	uint16		length;
	uint8		outcome;
	bool		touch_only;		/* for last_used_at and the rollups; not for
								 * the history */
	int16		endpoint_len;	/* -1: NULL, here and below */
	int16		method_len;
	int16		ip_len;
	int16		ntags;
	int16		tags_len;
	TimestampTz timestamp;
	int64		cost;
	pg_uuid_t	key_id;
	char		data[FLEXIBLE_ARRAY_MEMBER];	/* ip, method, endpoint, tags */
} AkRecord;

#define AK_RECORD_MAX \
	MAXALIGN(offsetof(AkRecord, data) + sizeof(inet_struct) + \
			 AK_METHOD_MAX + AK_ENDPOINT_MAX + AK_TAGS_MAX)

typedef enum AkAppend
{
	AK_APPENDED,				/* remembered, or counted as dropped */
	AK_CLOSED,					/* the meter is closed: wait for a worker */
	AK_FULL						/* no space: wait for a flush */
} AkAppend;

/* A place in a lane: AK_NONE is before all of it. */
typedef struct AkLanePosition
{
	uint32		chunk;
	uint32		offset;
} AkLanePosition;

typedef void (*AkRecordConsumer) (const AkRecord *record, void *arg);

extern Size ak_history_shmem_size(void);
extern void ak_history_shmem_init(bool found);
extern AkAppend ak_history_append(AkDatabase *db, const AkRecord *record,
								  bool may_drop);
extern void ak_history_pause(bool may_drop);
extern void ak_history_count(AkDatabase *db, AkOutcome outcome);
extern void ak_history_count_standby(AkDatabase *db, AkOutcome outcome);
extern void ak_history_remember(AkDatabase *db, const AkRecord *record);
extern bool ak_history_is_empty(AkDatabase *db);
extern uint32 ak_history_part(void);
extern void ak_history_end(AkDatabase *db, int lane, AkLanePosition *end);
extern void ak_history_read(AkDatabase *db, int lane, const AkLanePosition *end,
							uint32 *nchunks, AkLanePosition *stop,
							AkRecordConsumer consume, void *arg);
extern void ak_history_consume(AkDatabase *db, int lane,
							   const AkLanePosition *stop);
extern void ak_history_forget(AkDatabase *db);
extern void ak_history_barrier(AkDatabase *db);

/* ----- record.c ----- */

extern void ak_record_prepare(AkRecord *record, TimestampTz now, int64 cost,
							  const inet *ip_address, NullableDatum endpoint,
							  NullableDatum method, NullableDatum tags);

/* ----- verify.c: the decision, for other callers than apikey_verify() ----- */

typedef struct AkAsked
{
	NullableDatum secret;		/* text, as are the next two */
	NullableDatum endpoint;
	NullableDatum method;
	const inet *ip_address;		/* NULL: not told */
	int64		cost;
	char	   *permissions;	/* expression, checked; NULL: none asked for */
	char	   *api_id;			/* NULL: any */
} AkAsked;

typedef struct AkDecided
{
	AkOutcome	outcome;
	TimestampTz now;
	const AkKey *key;			/* NULL: not known, as is the next */
	const AkSubject *subject;
	const AkCharge *charge;		/* NULL: no limit was looked at */
} AkDecided;

extern int64 ak_cost_arg(FunctionCallInfo fcinfo, int arg);
extern void ak_verify(const AkAsked *asked, AkDecided *decided);

/* ----- current.c ----- */

extern void ak_current_remember(const AkKey *key, const AkSubject *subject);

/* ----- waiting for the worker (wait.c) ----- */

typedef struct AkWait
{
	AkDatabase *db;
	int			timeout_ms;
	bool		prepared;
	int64		deadline;		/* of ak_elapsed(); set once prepared */
} AkWait;

extern void ak_wait_begin(AkWait *wait, AkDatabase *db, int timeout_ms);
extern bool ak_wait_once(AkWait *wait);
extern void ak_wait_end(AkWait *wait);
ak_noreturn extern void ak_wait_failed(AkWait *wait);

/* ----- health.c ----- */

extern bool ak_counts_are_clean(AkDatabase *db);
extern int64 ak_counts_lag(AkDatabase *db);
extern int64 ak_history_lag(AkDatabase *db);
extern void ak_failure_note(AkDatabase *db);

/* ----- launcher.c, worker.c ----- */

extern PGDLLEXPORT void ak_launcher_main(Datum arg);
extern PGDLLEXPORT void ak_worker_main(Datum arg);
extern void ak_launcher_register(void);

/* ----- guc.c ----- */

typedef enum AkOverflow
{
	AK_OVERFLOW_WAIT,
	AK_OVERFLOW_DROP
} AkOverflow;

extern char *ak_default_prefix;
extern int	ak_max_tracked_keys;
extern int	ak_max_databases;
extern int	ak_history_buffer;	/* kB */
extern int	ak_flush_interval;	/* ms */
extern bool ak_history;
extern int	ak_history_overflow;
extern int	ak_history_wait_timeout;	/* ms */
extern int	ak_history_retention;	/* min; 0: for ever */
extern int	ak_rollup_retention;	/* min; 0: for ever */
extern int	ak_meter_timeout;	/* ms */
extern int	ak_crash_slack;
extern int	ak_max_reservations;
extern int	ak_expired_key_grace;	/* s */
extern int	ak_sweep_interval;	/* s */
extern int	ak_worker_idle_timeout; /* s */
extern int	ak_last_used_interval;	/* s */
extern int	ak_request_id_window;	/* s */

extern bool ak_redact_log;
extern char *ak_http_header;
extern char *ak_http_api;
extern char *ak_http_public_paths;
extern char *ak_trusted_proxies;
extern bool ak_legacy_rate_headers;

extern void ak_define_settings(void);

/* ----- redact.c, activity.c ----- */

extern void ak_redact_install(void);
extern void ak_redact_learn(const char *prefix, int length);
extern bool ak_redact_statement(char *text);
extern void ak_redact_own_statement(bool report_it);
extern const char *ak_redact_utility(const PlannedStmt *statement,
									 const char *text);
extern void ak_activity_install(void);

/* ----- function_scan.c ----- */

extern void ak_function_scan_install(void);

/* ----- load_dump.c ----- */

extern bool ak_loads_dump(const Node *node);
extern int	ak_load_dump(void);

/* ----- triggers.c, keys.c ----- */

extern void ak_force_durable_commit(void);
extern void ak_check_dimensions(ArrayType *array, const char *name);
extern void ak_check_expiry(TimestampTz expires_at);

#endif							/* APIKEYS_H */
