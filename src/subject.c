/*-------------------------------------------------------------------------
 *
 * subject.c
 *	  Whose limits apply to a key, and which plan's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "apikeys.h"

/*
 * The plan that applies: the key's own, else its user's, else its api's, else
 * none (empty id: unlimited, counted by calendar month).  *is_user says that
 * it is the user's, and so shared by the user's keys.
 */
void
ak_applicable_plan(const char *plan_id, const AkUser *user, const char *api_id,
				   AkPlan *plan, bool *is_user)
{
	AkApi		api;

	*is_user = false;
	if (plan_id[0] == '\0' && user->exists && user->plan_id[0] != '\0')
	{
		*is_user = true;
		plan_id = user->plan_id;
	}
	if (plan_id[0] == '\0' && ak_api_by_id(api_id, &api))
		plan_id = api.default_plan_id;

	if (plan_id[0] != '\0')
	{
		ak_plan_by_id(plan_id, plan);
		return;
	}
	memset(plan, 0, sizeof(AkPlan));
	plan->is_usable = true;
	plan->max_requests = -1;
	plan->max_keys_per_user = -1;
	plan->period = AK_MONTH;
}

/* Whose count a request with this key goes to, and under which plan. */
void
ak_subject_of_key(const AkKey *key, AkSubject *subject)
{
	memset(subject, 0, sizeof(AkSubject));
	subject->user.custom_start = AK_CALENDAR;
	if (key->user_id[0] != '\0')
		ak_user_by_id(key->user_id, &subject->user);
	ak_applicable_plan(key->plan_id, &subject->user, key->api_id,
					   &subject->plan, &subject->is_user);
	subject->subject_id = subject->is_user ? subject->user.subject_id : key->id;
	subject->anchor = subject->user.exists ?
		subject->user.custom_start : AK_CALENDAR;
}

/* The same for what a user's keys share. */
void
ak_subject_of_user(const AkUser *user, AkSubject *subject)
{
	bool		has_plan;

	memset(subject, 0, sizeof(AkSubject));
	subject->user = *user;
	ak_applicable_plan("", user, "", &subject->plan, &has_plan);
	subject->is_user = true;
	subject->subject_id = user->subject_id;
	subject->anchor = user->custom_start;
}
