/*-------------------------------------------------------------------------
 *
 * http_address.c
 *	  The client's address, by the word of trusted proxies.
 *
 * Neither the database nor PostgREST knows who is at the other end of the HTTP
 * connection: all there is is X-Forwarded-For, to which each proxy appends the
 * address of its peer, and which the client may have begun itself.  So it is
 * read from its end, and only as far as proxies that are trusted have written
 * it.  That the last entry is a proxy's is what apikeys.trusted_proxies
 * asserts: it is empty by default, and then no address is known.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>

#include "utils/builtins.h"
#include "utils/inet.h"

#include "http.h"

#define SEPARATORS ", \t"

/* Longest text of an address or network that is read. */
#define ADDRESS_MAX 64

/* Read an address or a network.  False if it is none. */
static bool
read_network(const char *text, inet_struct *network)
{
	int			bits;

	network->family = strchr(text, ':') ? PGSQL_AF_INET6 : PGSQL_AF_INET;
	bits = pg_inet_net_pton(network->family, text, network->ipaddr, -1);
	if (bits < 0)
		return false;
	network->bits = bits;
	ak_address_unmap(network);
	return true;
}

/* Read an entry of X-Forwarded-For: an address, perhaps with a port. */
static bool
read_entry(const char *entry, int length, inet_struct *address)
{
	char		text[ADDRESS_MAX];
	char	   *end;

	if (length == 0 || length >= ADDRESS_MAX ||
		memchr(entry, '/', length) != NULL)
		return false;
	memcpy(text, entry, length);
	text[length] = '\0';
	if (text[0] == '[')
	{
		end = strchr(text, ']');
		if (end == NULL || (end[1] != '\0' && end[1] != ':'))
			return false;
		*end = '\0';
		memmove(text, text + 1, strlen(text));
	}
	else if ((end = strchr(text, ':')) != NULL && strchr(end + 1, ':') == NULL)
		*end = '\0';
	return read_network(text, address);
}

typedef bool (*NetworkVisitor) (const inet_struct *network, const void *arg);

/* Show networks to "visit" until it says false.  False if one is none. */
static bool
each_network(const char *list, NetworkVisitor visit, const void *arg)
{
	const char *at = list + strspn(list, SEPARATORS);

	while (*at != '\0')
	{
		int			length = strcspn(at, SEPARATORS);
		char		text[ADDRESS_MAX];
		inet_struct		network;

		if (length >= ADDRESS_MAX)
			return false;
		memcpy(text, at, length);
		text[length] = '\0';
		if (!read_network(text, &network))
			return false;
		if (!visit(&network, arg))
			break;
		at += length;
		at += strspn(at, SEPARATORS);
	}
	return true;
}

static bool
is_any(const inet_struct *network, const void *arg)
{
	return true;
}

/* Whether a value of apikeys.trusted_proxies can be read.  Raises nothing. */
bool
ak_addresses_are_valid(const char *list)
{
	return each_network(list, is_any, NULL);
}

typedef struct Search
{
	const inet_struct *address;
	bool	   *found;
} Search;

static bool
is_another(const inet_struct *network, const void *arg)
{
	const Search *search = arg;

	*search->found = ak_address_is_within(search->address, network);
	return !*search->found;
}

static bool
is_trusted(const inet_struct *address)
{
	bool		found = false;
	Search		search = {address, &found};

	(void) each_network(ak_trusted_proxies, is_another, &search);
	return found;
}

static const inet *
as_inet(const inet_struct *address)
{
	inet	   *result = palloc0(sizeof(inet));

	ip_family(result) = address->family;
	ip_bits(result) = ip_maxbits(result);
	memcpy(ip_addr(result), address->ipaddr, ip_addrsize(result));
	SET_INET_VARSIZE(result);
	return result;
}

/*
 * The client's address: of the entries of X-Forwarded-For, the last that is no
 * trusted proxy's own; the first, if all are.  NULL if no proxy is trusted, or
 * what a trusted one has written is no address.
 */
const inet *
ak_client_address(const char *forwarded)
{
	const char *end;
	const inet *client = NULL;

	if (forwarded == NULL ||
		ak_trusted_proxies[strspn(ak_trusted_proxies, SEPARATORS)] == '\0')
		return NULL;

	end = forwarded + strlen(forwarded);
	for (;;)
	{
		const char *begin;
		const char *last = end;
		inet_struct		address;

		for (begin = end; begin > forwarded && begin[-1] != ','; begin--)
			;
		end = begin;
		begin += strspn(begin, " \t");
		while (last > begin && (last[-1] == ' ' || last[-1] == '\t'))
			last--;
		if (!read_entry(begin, Max(last - begin, 0), &address))
			return NULL;
		client = as_inet(&address);
		if (!is_trusted(&address) || end == forwarded)
			return client;
		end--;					/* the comma */
	}
}
