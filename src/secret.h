/*-------------------------------------------------------------------------
 *
 * secret.h
 *	  Secrets and uuids; see secret.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_SECRET_H
#define APIKEYS_SECRET_H

#include "utils/uuid.h"

#define AK_PREFIX_MAX 32
#define AK_SECRET_RANDOM 32		/* base62 characters drawn at random */
#define AK_SECRET_CHECK 6		/* base62 characters of checksum */
#define AK_SECRET_TAIL (AK_SECRET_RANDOM + AK_SECRET_CHECK)
#define AK_SECRET_MAX (AK_PREFIX_MAX + 1 + AK_SECRET_TAIL)
#define AK_START_RANDOM 4		/* random characters shown in "start" */
#define AK_DIGEST_LEN 32

/* A letter: if a text is read as SQL again, no token ends elsewhere. */
#define AK_MASK 'x'

/* Not isalnum(): the server's locale has no say in what a secret is. */
static inline bool
ak_is_base62(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
		(c >= 'a' && c <= 'z');
}

extern bool ak_prefix_is_valid(const char *prefix);
extern bool ak_secret_is_well_formed(const char *secret, int length);
extern void ak_secret_mask(char *text, int length, bool is_cut);
extern void ak_secret_make(const char *prefix, char secret[AK_SECRET_MAX + 1]);
extern int	ak_secret_start_length(const char *secret);
extern void ak_secret_digest(const char *secret, int length,
							 uint8 digest[AK_DIGEST_LEN]);
extern void ak_uuidv7(pg_uuid_t *uuid);
extern char *ak_uuid_text(const pg_uuid_t *uuid);

#endif							/* APIKEYS_SECRET_H */
