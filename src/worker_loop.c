/*-------------------------------------------------------------------------
 *
 * worker_loop.c
 *	  What a database's worker does, and when.
 *
 * Counts, history, last uses, rollups and maintenance each have their time;
 * between any two transactions of them, who waits for a ceiling comes first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

#include "reserve.h"
#include "worker.h"

/*
 * Counts are looked at twice an interval, so that one whose row is due is exact
 * in apikeys.usage within half an interval.
 */
#define COUNTS_PER_INTERVAL 2

/* By ak_elapsed(): a wall clock that is set back must not put off a flush. */
typedef struct Schedule
{
	int64		next_counts;
	int64		next_history;
	int64		next_sweep;
	bool		maintaining;	/* a round is not over yet */
	int64		last_work;
} Schedule;

/* When the worker has been idle for long enough to leave. */
static int64
idle_at(const Schedule *schedule)
{
	return schedule->last_work + ak_worker_idle_timeout * USECS_PER_SEC;
}

static bool
has_work(void)
{
	return ak_my_db->urgent || ak_my_db->history_urgent ||
		!ak_counts_are_clean(ak_my_db) ||
		!ak_history_is_empty(ak_my_db) || ak_uses_are_due();
}

/* Shorter intervals hold at once. */
static void
hasten(Schedule *schedule, int64 now)
{
	int64		interval = ak_flush_interval * INT64CONST(1000);

	schedule->next_counts = Min(schedule->next_counts,
								now + interval / COUNTS_PER_INTERVAL);
	schedule->next_history = Min(schedule->next_history, now + interval);
	schedule->next_sweep = Min(schedule->next_sweep,
							   now + ak_sweep_interval * USECS_PER_SEC);
}

/* What the worker does from now on, for pg_stat_activity. */
void
ak_worker_report(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
flush_counts_due(AkFlush *flush, Schedule *schedule, int64 now)
{
	int64		begin = ak_elapsed();
	bool		flushed = true;

	if (has_work())
	{
		ak_worker_report("flushing counts");
		flushed = ak_flush_counts(flush, AK_PASS_INTERVAL);
		if (flushed)
			ak_my_db->last_flush = ak_elapsed();
		schedule->last_work = now;
	}
	if (flushed)
		ak_my_db->counts_flushed = begin;
	schedule->next_counts = now +
		ak_flush_interval * INT64CONST(1000) / COUNTS_PER_INTERVAL;
}

/* Who waits for a ceiling waits for one transaction of the worker's at most. */
static void
serve_urgent(AkFlush *flush)
{
	if (ak_my_db->urgent)
		(void) ak_flush_counts(flush, AK_PASS_URGENT);
}

/* Write what is in the buffer by now; false if it could not be written. */
static bool
flush_history(AkFlush *flush)
{
	AkHistoryFlush history;

	ak_worker_report("flushing history");
	ak_flush_history_begin(ak_my_db, &history);
	while (!history.done)
	{
		if (!ak_flush_history_part(ak_my_db, &history))
			return false;
		serve_urgent(flush);
	}
	return true;
}

/* False if the history could not be written. */
static bool
flush_history_due(AkFlush *flush, Schedule *schedule, int64 now)
{
	int64		begin = ak_elapsed();
	bool		flushed = true;

	if (!ak_history_is_empty(ak_my_db))
	{
		flushed = flush_history(flush);
		if (!flushed)
			ak_my_db->stalled = true;
	}
	if (flushed)
	{
		ak_my_db->history_flushed = begin;
		ak_write_uses(ak_my_db, false);
	}
	schedule->next_history = now + ak_flush_interval * INT64CONST(1000);
	return flushed;
}

static void
rollup_due(void)
{
	ak_worker_report("writing rollups");
	ak_rollup_step(ak_my_db);
}

static void
sweep_due(AkFlush *flush, Schedule *schedule, int64 now)
{
	ak_maintain_begin(flush_history_due(flush, schedule, now));
	schedule->maintaining = true;
	schedule->next_sweep = now + ak_sweep_interval * USECS_PER_SEC;
}

static void
maintenance_due(Schedule *schedule)
{
	ak_worker_report("maintaining");
	schedule->maintaining = ak_maintain_step();
}

/*
 * There was nothing to do, so whatever there is now is no older than the call.
 */
static void
forget_sleep(void)
{
	int64		since = ak_my_db->called_at != 0 ? ak_my_db->called_at : ak_elapsed();

	ak_my_db->counts_flushed = since;
	ak_my_db->history_flushed = since;
	pg_memory_barrier();
}

/*
 * Whether somebody has called the worker.  It may have been woken for it while
 * it waited for something else, such as a lock.
 */
static bool
is_called(void)
{
	return ShutdownRequestPending || ConfigReloadPending ||
		ak_my_db->step_aside || ak_my_db->urgent ||
		(ak_my_db->history_urgent && !ak_my_db->stalled);
}

/*
 * Sleep until the next interval, or until something is to be done.  A worker
 * with nothing to flush first says that it sleeps, then looks once more: who
 * adds work after that wakes it (ak_nudge_if_asleep).
 */
static void
sleep_until_due(const Schedule *schedule)
{
	static uint32 wait_event = 0;
	int64		until = schedule->next_counts;
	bool		asleep;

	if (wait_event == 0)
		wait_event = ak_wait_event("ApikeysWorkerMain");
	ak_my_db->called_at = 0;
	ak_my_db->worker_awake = false;
	pg_memory_barrier();
	asleep = !has_work() && pg_atomic_read_u32(&ak_my_db->reserved) == 0;
	if (asleep)
		until = Min(Min(schedule->next_sweep, idle_at(schedule)),
					ak_uses_retry_at());
	else
		ak_my_db->worker_awake = true;
	until = Min(until, ak_rollup_due(ak_my_db));
	if (schedule->maintaining)
		until = 0;

	pgstat_report_activity(STATE_IDLE, NULL);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 is_called() ? 0 : ak_ms_until(until), wait_event);
	ResetLatch(MyLatch);
	if (asleep)
		forget_sleep();
	ak_my_db->worker_awake = true;
}

/*
 * Flush at every interval until there is a reason to leave: a shutdown, somebody
 * who needs the database, a dropped extension, or nothing to do.
 */
void
ak_worker_serve(AkFlush *flush)
{
	int64		now = ak_elapsed();
	Schedule	schedule = {
		.next_counts = now,
		.next_history = now,
		.next_sweep = now,
		.last_work = now
	};

	/* A worker before this one may have left something. */
	if (!has_work() || ak_my_db->counts_flushed == 0)
		ak_my_db->counts_flushed = ak_my_db->history_flushed = now;
	ak_my_db->worker_awake = true;
	for (;;)
	{
		if (ShutdownRequestPending || ak_my_db->step_aside || ak_worker_is_orphaned())
			return;
		ak_worker_check_interrupts();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			hasten(&schedule, ak_elapsed());
		}

		now = ak_elapsed();
		serve_urgent(flush);
		if (now >= schedule.next_counts)
			ak_reservations_release_due(ak_my_db);
		if (now >= schedule.next_counts)
			flush_counts_due(flush, &schedule, now);
		if (now >= schedule.next_sweep && !schedule.maintaining)
			sweep_due(flush, &schedule, now);
		serve_urgent(flush);
		if (schedule.maintaining)
			maintenance_due(&schedule);
		serve_urgent(flush);
		if (now >= schedule.next_history ||
			(ak_my_db->history_urgent && !ak_my_db->stalled))
			(void) flush_history_due(flush, &schedule, now);
		serve_urgent(flush);
		if (now >= ak_rollup_due(ak_my_db))
			rollup_due();
		if (pg_atomic_read_u32(&ak_my_db->refundable) > 0 ||
			pg_atomic_read_u32(&ak_my_db->reserved) > 0)
			schedule.last_work = now;	/* it has to stay */
		if (now >= idle_at(&schedule) && !has_work() && !schedule.maintaining)
			return;
		sleep_until_due(&schedule);
	}
}
