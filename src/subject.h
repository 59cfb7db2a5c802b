/*-------------------------------------------------------------------------
 *
 * subject.h
 *	  Who asks, and what applies to them: keys, users, plans, apis and roles, as
 *	  their rows say.
 *
 * Texts and arrays of a key point into a copy of its row, in the memory context that
 * was current; rates are the backend's own, and good until the next look-up of a
 * plan or user.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_SUBJECT_H
#define APIKEYS_SUBJECT_H

#include "utils/array.h"
#include "utils/inet.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "catalog.h"
#include "expression.h"
#include "period.h"

/* Longest identifier of a plan, api or user, in bytes, with its zero. */
#define AK_ID_LEN 256

#define AK_LIMIT_NAME_LEN 64	/* bytes of a limit's name, with its zero */
#define AK_RATES_MAX 8			/* rates that one plan, user or key can set */

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

/* limits.c */
extern void ak_rates_of(AkOwner owner, Datum id, MemoryContext context,
						AkRates *rates);

/* remember.c, find_key.c, lookup.c, users.c, subject.c */
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

#endif							/* APIKEYS_SUBJECT_H */
