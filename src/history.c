/*-------------------------------------------------------------------------
 *
 * history.c
 *	  Verifications on their way to apikeys.requests, in shared memory.
 *
 * The buffer is a pool of chunks.  Each database fills lanes, lists of chunks,
 * so that one that cannot be flushed never stands in the way of another, and
 * backends spread over the lanes.  Records are only ever appended; the worker
 * reads them in place, commits, then takes them out.
 *
 * A lane and its statistics are guarded by the lane's lock; what lies between
 * the consumed part and the end that the worker has read is not changed by
 * anybody else, so it reads without the lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/wait_event.h"

#include "apikeys.h"

typedef struct Chunk
{
	uint32		next;
	uint32		used;			/* bytes of data */
	char		data[AK_CHUNK_SIZE - 2 * sizeof(uint32)];
} Chunk;

StaticAssertDecl(AK_RECORD_MAX <= sizeof(((Chunk *) 0)->data),
				 "every record fits in a chunk");

static uint32
chunk_count(void)
{
	return ak_history_buffer * (Size) 1024 / AK_CHUNK_SIZE;
}

Size
ak_history_shmem_size(void)
{
	return mul_size(chunk_count(), AK_CHUNK_SIZE);
}

static inline Chunk *
chunk_at(uint32 i)
{
	return (Chunk *) (ak_shared->chunks + (Size) i * AK_CHUNK_SIZE);
}

void
ak_history_shmem_init(bool found)
{
	bool		already;

	ak_shared->chunks = ShmemInitStruct("apikeys history",
										ak_history_shmem_size(), &already);
	if (found)
		return;
	for (uint32 i = 0; i < chunk_count(); i++)
		chunk_at(i)->next = i + 1 < chunk_count() ? i + 1 : AK_NONE;
	ak_shared->free_chunk = 0;
	ak_shared->nfree_chunks = chunk_count();
}

static uint32
allocate_chunk(void)
{
	uint32		i;

	SpinLockAcquire(&ak_shared->free_lock);
	i = ak_shared->free_chunk;
	if (i != AK_NONE)
	{
		ak_shared->free_chunk = chunk_at(i)->next;
		ak_shared->nfree_chunks--;
	}
	SpinLockRelease(&ak_shared->free_lock);
	if (i != AK_NONE)
	{
		chunk_at(i)->next = AK_NONE;
		chunk_at(i)->used = 0;
	}
	return i;
}

static void
free_chunk(uint32 i)
{
	SpinLockAcquire(&ak_shared->free_lock);
	chunk_at(i)->next = ak_shared->free_chunk;
	ak_shared->free_chunk = i;
	ak_shared->nfree_chunks++;
	SpinLockRelease(&ak_shared->free_lock);
}

static inline int
my_lane(void)
{
	return MyProcPid % AK_LANES;
}

/*
 * Who takes a chunk of the second half owes a pause, the longer the fewer are
 * left: CHUNK_PAUSE in the middle of that half, without end towards its end.  So
 * those who fill the buffer come down to what the worker writes, and leave it a
 * processor to do so, where else they would all fill it and then all stand still.
 */
#define CHUNK_PAUSE 1000		/* µs */
#define LONGEST_PAUSE 10000		/* µs */

static int	owed_pause = 0;		/* µs */

static int
pause_for(uint32 nfree)
{
	uint32		half = chunk_count() / 2;

	if (nfree >= half)
		return 0;
	return Min(CHUNK_PAUSE * (double) (half - nfree) / Max(nfree, 1),
			   LONGEST_PAUSE);
}

/*
 * Make room for a record at the lane's end.  The caller holds the lane.  Once
 * half of the buffer is in use, the worker shall not wait for its interval.
 */
static bool
lane_has_room(AkDatabase *db, AkLane *lane, uint32 length)
{
	uint32		nfree;
	uint32		fresh;

	if (lane->tail != AK_NONE &&
		chunk_at(lane->tail)->used + length <= sizeof(chunk_at(0)->data))
		return true;
	nfree = ak_shared->nfree_chunks;
	if (nfree < chunk_count() / 2)
		db->history_urgent = true;
	fresh = allocate_chunk();
	if (fresh == AK_NONE)
		return false;
	owed_pause = pause_for(nfree);
	if (lane->tail == AK_NONE)
		lane->head = fresh;
	else
		chunk_at(lane->tail)->next = fresh;
	lane->tail = fresh;
	return true;
}

/*
 * Append a record and count its outcome.  Raises no error; the caller may hold
 * a partition.  With may_drop, a record for which there is no room is counted
 * as dropped.
 */
AkAppend
ak_history_append(AkDatabase *db, const AkRecord *record, bool may_drop)
{
	AkLane	   *lane = &db->lanes[my_lane()].lane;
	LWLock	   *lock = ak_lane_lock(db, my_lane());
	AkAppend	result = AK_APPENDED;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (!db->open)
		result = AK_CLOSED;
	else if (lane_has_room(db, lane, record->length))
	{
		Chunk	   *chunk = chunk_at(lane->tail);

		memcpy(chunk->data + chunk->used, record, record->length);
		chunk->used += record->length;
	}
	else if (!may_drop)
		result = AK_FULL;
	else
		lane->dropped++;
	if (result == AK_APPENDED)
		lane->outcomes[record->outcome]++;
	LWLockRelease(lock);
	return result;
}

/*
 * Pause, if the record that was appended is one too many for the worker.  The
 * caller holds no lock.  It is not interrupted: what was decided is answered.
 */
void
ak_history_pause(bool may_drop)
{
	static uint32 wait_event = 0;
	int			pause = Min(owed_pause, ak_history_wait_timeout * INT64CONST(1000));

	owed_pause = 0;
	if (pause == 0 || may_drop)
		return;
	if (wait_event == 0)
		wait_event = ak_wait_event("ApikeysHistory");
	pgstat_report_wait_start(wait_event);
	pg_usleep(pause);
	pgstat_report_wait_end();
}

/* Count an outcome that is not recorded. */
void
ak_history_count(AkDatabase *db, AkOutcome outcome)
{
	LWLock	   *lock = ak_lane_lock(db, my_lane());

	LWLockAcquire(lock, LW_EXCLUSIVE);
	db->lanes[my_lane()].lane.outcomes[outcome]++;
	LWLockRelease(lock);
}

/* Count an outcome that should have been recorded, but a standby cannot. */
void
ak_history_count_standby(AkDatabase *db, AkOutcome outcome)
{
	LWLock	   *lock = ak_lane_lock(db, my_lane());

	LWLockAcquire(lock, LW_EXCLUSIVE);
	db->lanes[my_lane()].lane.outcomes[outcome]++;
	db->lanes[my_lane()].lane.unrecorded++;
	LWLockRelease(lock);
}

/*
 * Remember a verification that charged nothing.  Waits for the worker, and for
 * room, as ak_meter_charge() does.
 */
void
ak_history_remember(AkDatabase *db, const AkRecord *record)
{
	AkWait		for_worker;
	AkWait		for_room;
	bool		may_drop = record->touch_only || db->stalled ||
		ak_history_overflow == AK_OVERFLOW_DROP;
	AkAppend	result;

	ak_wait_begin(&for_worker, db, ak_meter_timeout);
	ak_wait_begin(&for_room, db, ak_history_wait_timeout);
	while ((result = ak_history_append(db, record, may_drop)) != AK_APPENDED)
	{
		if (result == AK_FULL)
		{
			may_drop = !ak_wait_once(&for_room);
			if (may_drop)
				db->stalled = true;
		}
		else if (!ak_wait_once(&for_worker))
			ak_wait_failed(&for_worker);
	}
	ak_wait_end(&for_room);
	ak_wait_end(&for_worker);
	ak_nudge_if_asleep(db);
	ak_history_pause(may_drop);
}

/* ----- the worker's side ----- */

bool
ak_history_is_empty(AkDatabase *db)
{
	for (int i = 0; i < AK_LANES; i++)
	{
		AkLane	   *lane = &db->lanes[i].lane;
		LWLock	   *lock = ak_lane_lock(db, i);
		bool		empty;

		LWLockAcquire(lock, LW_SHARED);
		empty = lane->head == AK_NONE ||
			(lane->head == lane->tail &&
			 lane->consumed == chunk_at(lane->head)->used);
		LWLockRelease(lock);
		if (!empty)
			return false;
	}
	return true;
}

/* A part of the buffer, in chunks, that one transaction may write. */
uint32
ak_history_part(void)
{
	return Max(chunk_count() / 4, 1);
}

/* Where a lane ends now. */
void
ak_history_end(AkDatabase *db, int i, AkLanePosition *end)
{
	AkLane	   *lane = &db->lanes[i].lane;
	LWLock	   *lock = ak_lane_lock(db, i);

	LWLockAcquire(lock, LW_SHARED);
	end->chunk = lane->tail;
	end->offset = lane->tail == AK_NONE ? 0 : chunk_at(lane->tail)->used;
	LWLockRelease(lock);
}

/*
 * Show the records of a lane before "end" to "consume", oldest first, as many as
 * are in *nchunks chunks, and take these off.  Sets *stop to where it stopped:
 * AK_NONE if there was nothing.  The records stay until ak_history_consume().
 * Only the database's worker may call this.
 */
void
ak_history_read(AkDatabase *db, int i, const AkLanePosition *end,
				uint32 *nchunks, AkLanePosition *stop,
				AkRecordConsumer consume, void *arg)
{
	AkLane	   *lane = &db->lanes[i].lane;
	LWLock	   *lock = ak_lane_lock(db, i);
	uint32		at;
	uint32		offset;

	LWLockAcquire(lock, LW_SHARED);
	at = lane->head;
	offset = lane->consumed;
	LWLockRelease(lock);

	stop->chunk = AK_NONE;
	stop->offset = 0;
	while (end->chunk != AK_NONE && *nchunks > 0)
	{
		Chunk	   *chunk = chunk_at(at);

		stop->chunk = at;
		stop->offset = at == end->chunk ? end->offset : chunk->used;
		if (offset < stop->offset)
			(*nchunks)--;
		while (offset < stop->offset)
		{
			const AkRecord *record = (const AkRecord *) (chunk->data + offset);

			consume(record, arg);
			offset += record->length;
		}
		if (at == end->chunk)
			break;
		at = chunk->next;
		offset = 0;
	}
}

/*
 * Take out what was read up to "stop"; it is durable.  The chunk being filled
 * stays with the lane, emptied if nothing came after.
 */
void
ak_history_consume(AkDatabase *db, int i, const AkLanePosition *stop)
{
	AkLane	   *lane = &db->lanes[i].lane;
	LWLock	   *lock = ak_lane_lock(db, i);

	if (stop->chunk == AK_NONE)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	while (lane->head != stop->chunk)
	{
		uint32		next = chunk_at(lane->head)->next;

		free_chunk(lane->head);
		lane->head = next;
	}
	lane->consumed = stop->offset;
	if (lane->head == lane->tail &&
		lane->consumed == chunk_at(lane->head)->used)
	{
		chunk_at(lane->head)->used = 0;
		lane->consumed = 0;
	}
	LWLockRelease(lock);
}

/* Drop all that a database holds in the buffer; it is closed. */
void
ak_history_forget(AkDatabase *db)
{
	for (int i = 0; i < AK_LANES; i++)
	{
		AkLane	   *lane = &db->lanes[i].lane;
		LWLock	   *lock = ak_lane_lock(db, i);

		LWLockAcquire(lock, LW_EXCLUSIVE);
		while (lane->head != AK_NONE)
		{
			uint32		next = chunk_at(lane->head)->next;

			free_chunk(lane->head);
			lane->head = next;
		}
		lane->tail = AK_NONE;
		lane->consumed = 0;
		LWLockRelease(lock);
	}
}

/* Pass through every lane of a database; see ak_meter_barrier(). */
void
ak_history_barrier(AkDatabase *db)
{
	for (int i = 0; i < AK_LANES; i++)
	{
		LWLockAcquire(ak_lane_lock(db, i), LW_EXCLUSIVE);
		LWLockRelease(ak_lane_lock(db, i));
	}
}
