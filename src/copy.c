/*-------------------------------------------------------------------------
 *
 * copy.c
 *	  Write history records through COPY.
 *
 * The server's own COPY FROM is the fastest way into a partitioned table with
 * indexes; it is fed from memory with its binary format, as logical
 * replication feeds it from a connection.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/table.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "utils/rel.h"

#include "worker.h"

#define COLUMNS 9

static const char *const columns[COLUMNS] = {
	"timestamp", "key_id", "endpoint", "method", "status", "code",
	"ip_address", "cost", "tags"
};

/* The stream being read; the callback takes no argument. */
static struct
{
	const AkRecord **records;
	int			n;
	int			next;			/* record; n: the trailer, n + 1: the end */
	StringInfoData buffer;
} stream;

static void
put_bytes(StringInfo out, const char *data, int length)
{
	pq_sendint32(out, length);
	if (length > 0)
		appendBinaryStringInfo(out, data, length);
}

static void
put_text(StringInfo out, const char *data)
{
	put_bytes(out, data, strlen(data));
}

/* inet, as inet_recv() reads it. */
static void
put_inet(StringInfo out, const char *data, int length)
{
	inet_struct address;
	int			size;

	if (length < 0)
	{
		pq_sendint32(out, -1);
		return;
	}
	memset(&address, 0, sizeof(address));
	memcpy(&address, data, length);
	size = address.family == PGSQL_AF_INET ? 4 : 16;
	pq_sendint32(out, 4 + size);
	pq_sendbyte(out, address.family);
	pq_sendbyte(out, address.bits);
	pq_sendbyte(out, 0);		/* not a cidr */
	pq_sendbyte(out, size);
	appendBinaryStringInfo(out, (char *) address.ipaddr, size);
}

/* text[], as array_recv() reads it. */
static void
put_tags(StringInfo out, const char *data, const AkRecord *record)
{
	if (record->ntags < 0)
	{
		pq_sendint32(out, -1);
		return;
	}
	if (record->ntags == 0)
		pq_sendint32(out, 12);
	else
		pq_sendint32(out, 20 + record->tags_len + 2 * record->ntags);
	pq_sendint32(out, record->ntags > 0 ? 1 : 0);	/* dimensions */
	pq_sendint32(out, 0);		/* no nulls */
	pq_sendint32(out, TEXTOID);
	if (record->ntags == 0)
		return;
	pq_sendint32(out, record->ntags);
	pq_sendint32(out, 1);		/* lower bound */
	for (int i = 0; i < record->ntags; i++)
	{
		uint16		length;

		memcpy(&length, data, sizeof(length));
		put_bytes(out, data + sizeof(length), length);
		data += sizeof(length) + length;
	}
}

static void
put_record(StringInfo out, const AkRecord *record)
{
	const char *ip = record->data;
	const char *method = ip + Max(record->ip_len, 0);
	const char *endpoint = method + Max(record->method_len, 0);
	const char *tags = endpoint + Max(record->endpoint_len, 0);

	pq_sendint16(out, COLUMNS);
	pq_sendint32(out, sizeof(TimestampTz));
	pq_sendint64(out, record->timestamp);
	put_bytes(out, (const char *) record->key_id.data, UUID_LEN);
	put_bytes(out, endpoint, record->endpoint_len);
	put_bytes(out, method, record->method_len);
	put_text(out, record->outcome >= AK_VALID ? "allowed" : "denied");
	put_text(out, ak_outcome_name(record->outcome));
	put_inet(out, ip, record->ip_len);
	pq_sendint32(out, sizeof(int64));
	pq_sendint64(out, record->cost);
	put_tags(out, tags, record);
}

/* Give COPY at least minread bytes, unless the end has come. */
static int
read_stream(void *outbuf, int minread, int maxread)
{
	StringInfo	buffer = &stream.buffer;
	int			length;

	while (buffer->len - buffer->cursor < maxread && stream.next <= stream.n)
	{
		if (buffer->cursor > 0)
		{
			memmove(buffer->data, buffer->data + buffer->cursor,
					buffer->len - buffer->cursor);
			buffer->len -= buffer->cursor;
			buffer->cursor = 0;
		}
		if (stream.next == stream.n)
			pq_sendint16(buffer, -1);
		else
			put_record(buffer, stream.records[stream.next]);
		stream.next++;
	}
	length = Min(maxread, buffer->len - buffer->cursor);
	memcpy(outbuf, buffer->data + buffer->cursor, length);
	buffer->cursor += length;
	return length;
}

/*
 * Append records to apikeys.requests.  To be called in a transaction with an
 * active snapshot; any error is COPY's own.
 */
void
ak_copy_history(const AkRecord **records, int n)
{
	static const char signature[] = "PGCOPY\n\377\r\n";
	Relation	rel = table_open(ak_catalog()->requests, RowExclusiveLock);
	ParseState *pstate = make_parsestate(NULL);
	List	   *names = NIL;
	List	   *options;
	CopyFromState copy;

	stream.records = records;
	stream.n = n;
	stream.next = 0;
	initStringInfo(&stream.buffer);
	appendBinaryStringInfo(&stream.buffer, signature, sizeof(signature));
	pq_sendint32(&stream.buffer, 0);	/* flags */
	pq_sendint32(&stream.buffer, 0);	/* no header extension */

	for (int i = 0; i < COLUMNS; i++)
		names = lappend(names, makeString(pstrdup(columns[i])));
	options = list_make2(makeDefElem("format", (Node *) makeString("binary"), -1),
						 makeDefElem("encoding",
									 (Node *) makeString(pstrdup(GetDatabaseEncodingName())),
									 -1));
	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL,
										 false, false);
	copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_stream, names,
						 options);
	(void) CopyFrom(copy);
	EndCopyFrom(copy);
	free_parsestate(pstate);
	table_close(rel, NoLock);
}
