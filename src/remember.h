/*-------------------------------------------------------------------------
 *
 * remember.h
 *	  Rows of small tables, and memories of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_REMEMBER_H
#define APIKEYS_REMEMBER_H

#include "access/htup_details.h"
#include "utils/hsearch.h"
#include "utils/relcache.h"

#include "apikeys.h"

/* Called for each row; false ends the visit. */
typedef bool (*AkRowVisitor) (Relation rel, HeapTuple tuple, void *arg);

/*
 * A memory of rows: entries begin with what they are found by, an id unless
 * key_size is given.  Emptied when the rows may have changed, or when it is
 * full.
 */
typedef struct AkMemory
{
	const char *name;
	Size		key_size;		/* 0: a text id */
	Size		entry_size;
	int			max;			/* entries; 0: as is usual */
	HTAB	   *table;
	MemoryContext context;
	uint64		changes;		/* as of which it holds */
	void	   *last;			/* entry found last: most keys have one plan */
} AkMemory;

extern void ak_visit_rows(Oid relid, Oid indexid, const char *column,
						  const char *id, AkRowVisitor visit, void *arg);
extern Datum ak_column_of(Relation rel, HeapTuple tuple, const char *name,
						  bool *isnull);
extern void *ak_remembered(AkMemory *memory, const void *key);
extern void ak_memory_prepare(AkMemory *memory, uint64 changes);
extern void *ak_remember(AkMemory *memory, const void *entry);
extern AkRates ak_keep_rates(AkMemory *memory, const AkRates *rates);
extern void ak_copy_role(char role[NAMEDATALEN], Datum value, bool isnull);

#endif							/* APIKEYS_REMEMBER_H */
