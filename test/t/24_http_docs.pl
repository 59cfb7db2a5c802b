# What doc/http.md says to do is done as it says: the set-up of PostgREST, and the
# middleware of Express and FastAPI.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use HttpTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

tool('complete');
my $document = "$FindBin::RealBin/../../doc/http.md";
my %sections = map { /^(.*)\n/ ? ($1 => $_) : () }
  split /^##+ /m, slurp_file($document);

# The blocks of a section, by language.
sub blocks
{
	my ($section, $language) = @_;
	my @blocks;

	while ($sections{$section} =~ /^```(\w*)\n(.*?)^```$/msg)
	{
		push @blocks, $2 if $1 eq $language;
	}

	ok(@blocks > 0, "$section has examples");
	return @blocks;
}

my $node = new_server('main');
$node->start;
install($node);

# ----- Set up, and row security -----

$node->safe_psql('postgres', $_) foreach blocks('Set up', 'sql');
my ($settings) = grep { /^db-uri/ } blocks('Set up', '');
my %settings = $settings =~ /^(\S+) *= "(.*)"$/mg;
is(delete $settings{'db-uri'}, 'postgres://authenticator@/app', 'the settings are read');
my ($url, $log) = start_postgrest($node, %settings);

my ($key) = $node->safe_psql('postgres', blocks('Row security', 'sql')) =~ /(ak_\w+)/;
ok( until_true(sub { return (() = slurp_file($log) =~ /Schema cache loaded/g) > 1 }),
	'PostgREST learns of the table');
my ($session) = blocks('Row security', '');
my ($here) = $url =~ m!//(.*)!;
my $commands = 0;
while ($session =~ /^\$ (curl .*)\n((?:[^\$].*\n)*)/mg)
{
	my ($command, $expected) = ($1, $2);
	my ($out, $err);

	ok($command =~ s/127\.0\.0\.1:3000/$here/, 'a request');
	local $ENV{KEY} = $key;
	IPC::Run::run([ 'sh', '-c', "$command -sg" ], '<', \undef, '>', \$out, '2>', \$err);
	is($out =~ s/\n?\z//r, $expected =~ s/\n?\z//r, $command);
	$commands++;
}
is($commands, 3, 'all were made');

# A key is no JWT.
my $answer = ask("$url/notes", '-H', "Authorization: Bearer $key");
is("$answer->{status} " . json($answer)->{code}, '500 PGRST300', 'a Bearer, without jwt-secret');
my $jwt_secret = 'x' x 32;
my ($with_jwt) = start_postgrest($node, %settings, 'jwt-secret' => $jwt_secret);
$answer = ask("$with_jwt/notes", '-H', "Authorization: Bearer $key");
is("$answer->{status} " . json($answer)->{code}, '401 PGRST301', 'with it');

# A JWT's role runs the pre-request.
my $jwt = $node->safe_psql(
	'postgres', qq(
	CREATE ROLE web_user;
	GRANT web_user TO authenticator;
	GRANT USAGE ON SCHEMA api TO web_user;
	WITH parts AS (SELECT string_agg(translate(encode(convert_to(p, 'UTF8'), 'base64'), E'+/=\\n', '-_'), '.' ORDER BY n) AS signed
		FROM unnest('{"{\\"alg\\":\\"HS256\\"}","{\\"role\\":\\"web_user\\"}"}'::text[]) WITH ORDINALITY x(p, n))
	SELECT signed || '.' || translate(encode(hmac(signed, '$jwt_secret', 'sha256'), 'base64'), E'+/=\\n', '-_')
	  FROM parts));
my @both = ('-H', "Authorization: Bearer $jwt", '-H', "X-Api-Key: $key");
$answer = ask("$with_jwt/notes", @both);
is("$answer->{status} " . json($answer)->{code}, '403 42501', 'a role that may not verify');
$node->safe_psql('postgres', q(SELECT apikey_grant('web_user', 'verifier')));
is(ask("$with_jwt/notes", @both)->{status}, 200, 'one that may');

# ----- Middleware -----

$node->safe_psql(
	'postgres', q(
	CREATE ROLE verifier LOGIN;
	SELECT apikey_grant('verifier', 'verifier');
	SELECT apikey_plan_create('Two', 2, 'day', plan_id => 'two')));
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

sub test_middleware
{
	my ($name, @command) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $service = "http://127.0.0.1:$port/v1/thing?q=1";
	my ($id, $secret) = issue($node, 'postgres', "'$name', 'ü', 'two', allowed_ips => '{127.0.0.1/32}'");
	my ($off_id, $off) = issue($node, 'postgres', q('o', enabled => false));

	start_service(PostgreSQL::Test::Utils::tempdir() . "/$name.log", $service, @command, $document, $port);
	my $answer = ask($service, '-H', "X-Api-Key: $secret");
	is($answer->{status}, 200, "$name lets a key in") or diag($answer->{all});
	is(json($answer)->{user}, "\xfc", 'and knows whose it is');
	is($answer->{headers}{'ratelimit-policy'}, '"quota";q=2;w=86400', 'policy');
	like($answer->{headers}{ratelimit}, qr/^"quota";r=1;t=\d+$/, 'state');
	like($answer->{headers}{'content-type'}, qr!^application/json!, "the service's own type");
	is(ask($service, '-H', "X-Api-Key: $secret")->{status}, 200, 'a second time');
	foreach ([ 429, 'USAGE_EXCEEDED', $secret ], [ 403, 'DISABLED', $off ], [ 401, 'MALFORMED', 'junk' ])
	{
		my ($status, $code, $sent) = @$_;

		$answer = ask($service, '-H', "X-Api-Key: $sent");
		is("$answer->{status} " . json($answer)->{code}, "$status $code", "... $code");
		like($answer->{headers}{'content-type'}, qr!^application/problem\+json!, 'as a problem');
		like($answer->{headers}{'retry-after'}, qr/^\d+$/, 'when to retry') if $status == 429;
		like($answer->{headers}{ratelimit}, qr/^"quota";r=0/, 'state') if $status == 429;
		is($answer->{headers}{'www-authenticate'}, 'ApiKey header="x-api-key"', 'how to authenticate') if $status == 401;
	}
	is(ask($service)->{status}, 401, 'no key');
	is(usage($node, 'postgres', $id), 2, 'each is metered once');
	ok( $node->poll_query_until('postgres', qq(
			SELECT count(*) FILTER (WHERE (endpoint, method, ip_address) = ('/v1/thing', 'GET', '127.0.0.1')) = 3
			  FROM apikeys.requests WHERE key_id = '$id')),
		'the history has path, method and address');
	$node->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION apikey_verify_http FROM verifier');
	is(ask($service, '-H', "X-Api-Key: $secret")->{status}, 500, 'no decision, no request');
	$node->safe_psql('postgres', q(SELECT apikey_grant('verifier', 'verifier')));
	return;
}

my $services = "$FindBin::RealBin/../http";
test_middleware('express', 'node', "$services/express_service.js");
test_middleware('fastapi', '/usr/bin/python3', "$services/fastapi_service.py");

stop_services();
$node->stop;
done_testing();
