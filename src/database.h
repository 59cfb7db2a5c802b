/*-------------------------------------------------------------------------
 *
 * database.h
 *	  What shared memory holds: a slot for each database, the meter's entries and
 *	  the chunks of the history.
 *
 * Locks, in the order in which they may be taken together:
 *
 *	  control		 the array of databases: which slot is whose, its worker
 *	  reservations	 the reservations of all databases
 *	  partition		 the meter's entries of the subjects that hash to it
 *	  lane			 one lane of a database's history, and its statistics
 *	  asked_lock	 spinlock of a slot: the entries to be written soon
 *	  free_lock		 spinlock: the free entries and the free chunks
 *
 * A backend holds at most two partitions at a time, in the order of their
 * addresses, the worker at most one, and nobody both spinlocks.  No code that can
 * raise an error, allocate or check for interrupts runs between the first and the
 * last store to shared memory under a partition or lane lock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_DATABASE_H
#define APIKEYS_DATABASE_H

#include "lib/ilist.h"
#include "port/atomics.h"
#include "storage/buf.h"
#include "storage/condition_variable.h"
#include "storage/itemptr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "outcome.h"
#include "secret.h"

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
	int64		rollup_tidied_at;	/* when its last step ended, by ak_elapsed() */
	int64		rollup_tidy_pause;	/* after it, in us */
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
	pg_atomic_uint32 kept_requests; /* entries of requests that may yet be given
									 * back; each under its partition */
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

/* ----- hints.c: where keys were last found ----- */

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

/* ----- wait.c: waiting for the worker ----- */

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

#endif							/* APIKEYS_DATABASE_H */
