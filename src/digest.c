/*-------------------------------------------------------------------------
 *
 * digest.c
 *	  SHA-256 of a secret, which is what is kept of it.
 *
 * It is in the way of each verification.  The server's pg_cryptohash_init() has
 * OpenSSL 3 look the algorithm up each time, which takes longer than the digest
 * does; so OpenSSL is asked directly, with what it has found once.  Where the
 * server was built without it, or with an older one, it is pg_cryptohash.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "secret.h"

#ifdef AK_OPENSSL_FETCHES

#include <openssl/err.h>
#include <openssl/evp.h>

/* Algorithm and context serve the backend for its life. */
static const char *
compute(const char *secret, int length, uint8 digest[AK_DIGEST_LEN])
{
	static EVP_MD *sha256 = NULL;
	static EVP_MD_CTX *context = NULL;
	const char *reason;

	if (sha256 == NULL)
		sha256 = EVP_MD_fetch(NULL, "SHA2-256", NULL);
	if (context == NULL)
		context = EVP_MD_CTX_new();
	if (sha256 != NULL && context != NULL &&
		EVP_DigestInit_ex2(context, sha256, NULL) == 1 &&
		EVP_DigestUpdate(context, secret, length) == 1 &&
		EVP_DigestFinal_ex(context, digest, NULL) == 1)
		return NULL;

	/* The connection's own calls expect no error but theirs. */
	reason = ERR_reason_error_string(ERR_get_error());
	ERR_clear_error();
	return reason != NULL ? reason : "OpenSSL failed";
}

#else

/*
 * One context serves the backend for its life; it belongs to a resource owner of
 * its own so that no transaction's end frees it.
 */
static pg_cryptohash_ctx *
make_context(void)
{
	ResourceOwner caller = CurrentResourceOwner;
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	pg_cryptohash_ctx *context = NULL;

	CurrentResourceOwner = ResourceOwnerCreate(NULL, "apikeys");
	PG_TRY();
	{
		context = pg_cryptohash_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = caller;
		MemoryContextSwitchTo(oldcontext);
	}
	PG_END_TRY();
	return context;
}

static const char *
compute(const char *secret, int length, uint8 digest[AK_DIGEST_LEN])
{
	static pg_cryptohash_ctx *context = NULL;

	if (context == NULL)
		context = make_context();
	if (pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (const uint8 *) secret, length) < 0 ||
		pg_cryptohash_final(context, digest, AK_DIGEST_LEN) < 0)
		return pg_cryptohash_error(context);
	return NULL;
}

#endif

/* The digest of a secret, of whatever length.  Errors: XX000. */
void
ak_secret_digest(const char *secret, int length, uint8 digest[AK_DIGEST_LEN])
{
	const char *reason = compute(secret, length, digest);

	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a SHA-256 digest: %s", reason)));
}
