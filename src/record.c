/*-------------------------------------------------------------------------
 *
 * record.c
 *	  Make a history record of what the caller said about a request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "apikeys.h"

/*
 * The length of a text cut at a character, at most "max" bytes.  In a database
 * of encoding SQL_ASCII, what looks like UTF-8 is cut as if it were: clients
 * that read UTF-8 could not read the history else.
 */
static int
cut_length(const char *text, int length, int max)
{
	int			cut = pg_mbcliplen(text, length, max);

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		for (int back = 0; back < 3 && cut - back > 0; back++)
			if (((unsigned char) text[cut - back] & 0xC0) != 0x80)
				return cut - back;
	return cut;
}

/* Append a text to a record, cut at a character. */
static int
append_text(AkRecord *record, Size *used, NullableDatum value, int max)
{
	text	   *t;
	int			length;

	if (value.isnull)
		return -1;
	t = DatumGetTextPP(value.value);
	length = VARSIZE_ANY_EXHDR(t);
	if (length > max)
		length = cut_length(VARDATA_ANY(t), length, max);
	memcpy(record->data + *used, VARDATA_ANY(t), length);
	*used += length;
	return length;
}

/* Append the tags, each as its length and its bytes. */
static void
append_tags(AkRecord *record, Size *used, NullableDatum value)
{
	Size		begin = *used;
	Datum	   *tags;
	bool	   *nulls;
	int			n;

	record->ntags = -1;
	record->tags_len = 0;
	if (value.isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(value.value), TEXTOID, -1, false,
					  TYPALIGN_INT, &tags, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		text	   *tag;
		Size		length;
		uint16		prefix;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("tags must not contain nulls")));
		tag = DatumGetTextPP(tags[i]);
		length = VARSIZE_ANY_EXHDR(tag);
		if (*used - begin + sizeof(prefix) + length > AK_TAGS_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("tags are too long"),
					 errdetail("All tags together, and two bytes for each, take at most %d bytes.",
							   AK_TAGS_MAX)));
		prefix = length;
		memcpy(record->data + *used, &prefix, sizeof(prefix));
		memcpy(record->data + *used + sizeof(prefix), VARDATA_ANY(tag), length);
		*used += sizeof(prefix) + length;
	}
	record->ntags = n;
	record->tags_len = *used - begin;
}

/*
 * Prepare a record, all but its key and its outcome.  With history off it only
 * carries to the worker that the key was used, and how.
 *
 * Errors: 22004 and 22023 for tags.
 */
void
ak_record_prepare(AkRecord *record, TimestampTz now, int64 cost,
				  const inet *ip_address, NullableDatum endpoint,
				  NullableDatum method, NullableDatum tags)
{
	Size		used = 0;

	memset(record, 0, offsetof(AkRecord, data));
	record->timestamp = now;
	record->cost = cost;
	record->touch_only = !ak_history;

	record->ip_len = -1;
	if (ip_address != NULL)
	{
		record->ip_len = VARSIZE_ANY_EXHDR(ip_address);
		memcpy(record->data, VARDATA_ANY(ip_address), record->ip_len);
		used += record->ip_len;
	}
	record->method_len = append_text(record, &used, method, AK_METHOD_MAX);
	record->endpoint_len = append_text(record, &used, endpoint,
									   AK_ENDPOINT_MAX);
	append_tags(record, &used, tags);
	record->length = MAXALIGN(offsetof(AkRecord, data) +
							  (record->touch_only ? 0 : used));
}
