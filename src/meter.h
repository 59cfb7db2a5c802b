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
extern void ak_entry_free(uint32 i);
extern uint32 ak_entries_removed(const MeterKey *key);
extern void ak_entry_follow_clock(MeterEntry *entry, TimestampTz now);

#endif							/* APIKEYS_METER_H */
