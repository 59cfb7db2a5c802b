/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  The extension's own objects, by OID; see catalog.c.
 *
 * What ak_catalog() returns is the backend's own and good until the next call: an
 * invalidation that is accepted meanwhile has it looked up again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_CATALOG_H
#define APIKEYS_CATALOG_H

#include "access/attnum.h"

#include "database.h"

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

#endif							/* APIKEYS_CATALOG_H */
