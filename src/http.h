/*-------------------------------------------------------------------------
 *
 * http.h
 *	  What the files that speak HTTP share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_HTTP_H
#define APIKEYS_HTTP_H

#include "lib/stringinfo.h"

#include "apikeys.h"

/* What PostgREST takes a status, headers and a body from. */
#define AK_ERRCODE_PGRST MAKE_SQLSTATE('P', 'G', 'R', 'S', 'T')

/* http_address.c */
extern bool ak_addresses_are_valid(const char *list);
extern const inet *ak_client_address(const char *forwarded);

/* http_headers.c */
#define AK_HEADERS_MAX 16

typedef struct AkHeaders
{
	int			n;
	struct
	{
		const char *name;
		const char *value;
	}			headers[AK_HEADERS_MAX];
} AkHeaders;

extern void ak_header_add(AkHeaders *headers, const char *name,
						  const char *value);
extern char *ak_header_text(const char *value);
extern void ak_headers_of_limits(AkHeaders *headers, const AkDecided *decided);
extern void ak_headers_as_object(const AkHeaders *headers, StringInfo json);
extern void ak_headers_append(const AkHeaders *headers);

/* http_answer.c */

/* RFC 9457 */
#define AK_PROBLEM_TYPE "application/problem+json"

extern int	ak_http_status(const AkDecided *decided);
extern const char *ak_http_message(const AkDecided *decided);
extern void ak_headers_of_decision(AkHeaders *headers,
								   const AkDecided *decided);
extern char *ak_http_body(const AkDecided *decided, int status);

#endif							/* APIKEYS_HTTP_H */
