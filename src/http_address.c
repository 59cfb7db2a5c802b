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

typedef struct Network
{
	int			family;
	int			bits;
	unsigned char address[16];
} Network;

/* Read an address or a network.  False if it is none. */
static bool
read_network(const char *text, Network *network)
{
	network->family = strchr(text, ':') ? PGSQL_AF_INET6 : PGSQL_AF_INET;
	network->bits = pg_inet_net_pton(network->family, text, network->address,
									 -1);
	return network->bits >= 0;
}

/* An IPv4 address in the clothes of IPv6 (::ffff:a.b.c.d) is an IPv4 one. */
static void
unmap(Network *network)
{
	static const unsigned char mapped[12] = {[10] = 0xff,[11] = 0xff};

	if (network->family == PGSQL_AF_INET6 && network->bits >= 96 &&
		memcmp(network->address, mapped, sizeof(mapped)) == 0)
	{
		network->family = PGSQL_AF_INET;
		network->bits -= 96;
		memmove(network->address, network->address + 12, 4);
	}
}

/* Read an entry of X-Forwarded-For: an address, perhaps with a port. */
static bool
read_entry(const char *entry, int length, Network *address)
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
	if (!read_network(text, address))
		return false;
	unmap(address);
	return true;
}

static bool
is_within(const Network *address, const Network *network)
{
	return address->family == network->family &&
		bitncmp((unsigned char *) address->address,
				(unsigned char *) network->address, network->bits) == 0;
}

typedef bool (*NetworkVisitor) (const Network *network, const void *arg);

/* Show networks to "visit" until it says false.  False if one is none. */
static bool
each_network(const char *list, NetworkVisitor visit, const void *arg)
{
	const char *at = list + strspn(list, SEPARATORS);

	while (*at != '\0')
	{
		int			length = strcspn(at, SEPARATORS);
		char		text[ADDRESS_MAX];
		Network		network;

		if (length >= ADDRESS_MAX)
			return false;
		memcpy(text, at, length);
		text[length] = '\0';
		if (!read_network(text, &network))
			return false;
		unmap(&network);
		if (!visit(&network, arg))
			break;
		at += length;
		at += strspn(at, SEPARATORS);
	}
	return true;
}

static bool
is_any(const Network *network, const void *arg)
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
	const Network *address;
	bool	   *found;
} Search;

static bool
is_another(const Network *network, const void *arg)
{
	const Search *search = arg;

	*search->found = is_within(search->address, network);
	return !*search->found;
}

static bool
is_trusted(const Network *address)
{
	bool		found = false;
	Search		search = {address, &found};

	(void) each_network(ak_trusted_proxies, is_another, &search);
	return found;
}

static const inet *
as_inet(const Network *address)
{
	inet	   *result = palloc0(sizeof(inet));

	ip_family(result) = address->family;
	ip_bits(result) = ip_maxbits(result);
	memcpy(ip_addr(result), address->address, ip_addrsize(result));
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
		Network		address;

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
