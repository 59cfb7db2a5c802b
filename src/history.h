/*-------------------------------------------------------------------------
 *
 * history.h
 *	  History records, and the buffer in shared memory that takes them to the
 *	  worker.
 *
 * A lane is guarded by its lock (ak_lane_lock); a record that is being prepared is
 * the caller's own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_HISTORY_H
#define APIKEYS_HISTORY_H

#include "utils/inet.h"

#include "database.h"

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

#endif							/* APIKEYS_HISTORY_H */
