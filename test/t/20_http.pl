# Requests with keys through the real PostgREST: what they are answered, who
# they run as, what is metered, and where the secret must not show.

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

# All that the server can log is logged.
my $node = new_server(
	'main',
	'apikeys.trusted_proxies' => '127.0.0.1, 10.0.0.0/8',
	'log_min_duration_statement' => '0',
	'log_parameter_max_length' => '-1',
	'log_parameter_max_length_on_error' => '-1',
	'log_statement' => 'all');
$node->start;
install($node);
$node->safe_psql('postgres',
	slurp_file("$FindBin::RealBin/../http/tenant.sql") =~ s/^\\.*//mgr);

my ($alice_id, $alice) =
  issue($node, 'postgres', q('a', 'alice', 'tenant'));
my ($bob_id, $bob) = issue($node, 'postgres', q('b', 'bob', 'tenant'));
$node->safe_psql(
	'postgres', q(
	INSERT INTO apikeys.apis (id) VALUES ('second');
	SELECT apikey_plan_create('Small', 100, 'year', plan_id => 'small', http_role => 'web_tenant');
	SELECT apikey_plan_create('Slow', plan_id => 'slow', http_role => 'web_tenant');
	SELECT apikey_limit_set('slow', 1, '1 h', plan_id => 'slow')));
my ($second_id, $second) =
  issue($node, 'postgres', q('s', plan_id => 'tenant', api_id => 'second'));
my ($here_id, $here) = issue($node, 'postgres',
	q('h', plan_id => 'tenant', allowed_ips => '{192.0.2.0/24}'));
my ($slow_id, $slow) = issue($node, 'postgres', q('w', plan_id => 'slow'));
my ($off_id, $off) = issue($node, 'postgres', q('o', enabled => false));

my ($url, $log) = start_postgrest($node,
	'db-pre-request' => 'public.apikey_authenticate', 'db-max-rows' => 5);
my @json = ('-H', 'Content-Type: application/json');

sub with
{
	my ($key, @more) = @_;
	return ('-H', "X-Api-Key: $key", @more);
}

# Tests the status of a request, and returns the answer.
my $answers = '';

sub is_status
{
	my ($status, $name, $path, @arguments) = @_;
	my $answer = ask("$url$path", @arguments);

	is($answer->{status}, $status, $name) or diag($answer->{all});
	$answers .= $answer->{all};
	return $answer;
}

# How many verifications there were of each outcome, and how much was charged.
sub metered
{
	return $node->safe_psql(
		'postgres', q(
		SELECT (SELECT sum(value) FROM apikeys.stats WHERE name ~ '^[A-Z_]+$')
		       || ' ' || (SELECT sum(current_usage) FROM apikeys.live_usage)));
}

# ----- A tenant sees what is its own -----

my $answer = is_status(201, 'alice writes a note', '/notes',
	with($alice, @json, '-d', '{"body": "hers"}'));
is_status(201, 'bob writes a note', '/notes',
	with($bob, @json, '-d', '{"body": "his"}'));
# PostgREST takes who has no JWT for nobody: 401, not 403.
is_status(401, 'but none in the name of alice', '/notes',
	with($bob, @json, '-d', '{"body": "forged", "owner": "alice"}'));
$answer = is_status(200, 'alice reads', '/notes?select=owner,body',
	with($alice));
is($answer->{body}, '[{"owner":"alice","body":"hers"}]', 'her own notes');
like($answer->{headers}{'ratelimit-policy'},
	qr/^"quota";q=1000;w=86400$/, 'RateLimit-Policy tells the quota');
like($answer->{headers}{ratelimit}, qr/^"quota";r=998;t=\d+$/,
	'RateLimit what is left: a POST and a GET were charged');
is($answer->{headers}{'content-range'}, '0-0/*',
	'the headers of PostgREST are there too');
is_status(204, 'bob deletes all he can', '/notes?id=gt.0',
	with($bob, '-X', 'DELETE'));
is( $node->safe_psql('postgres', q(SELECT string_agg(owner, ' ') FROM api.notes)),
	'alice',
	'which is his own');
is(usage($node, 'postgres', $alice_id), 2, 'alice was charged');
is(usage($node, 'postgres', $bob_id), 3, 'bob also for what was rolled back');

# A rollback that the client forces, after the charge.
is_status(406, 'a client can force a rollback', '/notes?id=lt.0',
	with($alice, '-H', 'Accept: application/vnd.pgrst.object+json'));
is_status(404, 'or ask for what is not there', '/nothing', with($alice));
is_status(400, 'or fail', '/notes?id=eq.x', with($alice));
is(usage($node, 'postgres', $alice_id), 5, 'all are charged');
is_status(200, 'HEAD', '/notes', with($alice, '-I'));
is_status(200, 'a client that wants a rollback', '/notes',
	with($alice, '-H', 'Prefer: tx=rollback'));
is_status(200, 'a client that wants CSV', '/notes',
	with($alice, '-H', 'Accept: text/csv'));
is_status(401, 'a client that wants another schema', '/notes',
	'-H', 'Accept-Profile: api');
is(usage($node, 'postgres', $alice_id), 8, 'are charged too');
is_status(200, 'the OpenAPI description needs a key', '/', with($alice));

# ----- Refusals -----

sub is_refused
{
	my ($status, $code, $name, $path, @arguments) = @_;
	my $answer = is_status($status, $name, $path, @arguments);
	my $body = json($answer);

	is($body->{code}, $code, "... and the body names it");
	like($answer->{headers}{'content-type'},
		qr!^application/json!, '... as JSON, said once');
	return $answer;
}

$answer = is_refused(401, 'MALFORMED', 'no key', '/notes');
is($answer->{headers}{'www-authenticate'},
	'ApiKey header="x-api-key"', 'where to put it');
is_refused(401, 'MALFORMED', 'not a key', '/notes', with('junk'));
is_refused(401, 'MALFORMED', 'an empty key', '/notes', '-H', 'X-Api-Key;');
is_status(200, 'spaces around a key', '/notes', '-H', "X-Api-Key: \t $alice \t ");
is_refused(401, 'MALFORMED', 'non-ASCII', '/notes', with("\xc3\xbc$alice"));
is_refused(401, 'MALFORMED', 'a long key', '/notes', with('a' x 30000));
is_refused(401, 'NOT_FOUND', 'a key of another api', '/notes', with($second));
is_refused(403, 'DISABLED', 'a disabled key', '/notes', with($off));
is_refused(401, 'MALFORMED', 'the OpenAPI description', '/');
is_refused(401, 'MALFORMED', 'a path that PostgREST does not have', '/nothing');

is_status(200, 'a first request', '/notes', with($slow));
$answer = is_refused(429, 'RATE_LIMITED', 'a second one', '/notes', with($slow));
like($answer->{headers}{'retry-after'}, qr/^(35|36)\d\d$/, 'when to retry');
is($answer->{headers}{'ratelimit-policy'}, '"slow";q=1;w=3600', 'the policy');
like($answer->{headers}{ratelimit}, qr/^"slow";r=0;t=(35|36)\d\d$/, 'the state');

# ----- The address -----

is_refused(403, 'FORBIDDEN', 'no address', '/notes', with($here));
is_refused(403, 'FORBIDDEN', 'another address', '/notes',
	with($here, '-H', 'X-Forwarded-For: 198.51.100.1'));
is_refused(403, 'FORBIDDEN', 'a forged one before it', '/notes',
	with($here, '-H', 'X-Forwarded-For: 192.0.2.1, 198.51.100.1'));
is_refused(403, 'FORBIDDEN', 'and behind proxies', '/notes',
	with($here, '-H', 'X-Forwarded-For: 192.0.2.1, 198.51.100.1, 10.0.0.1, 127.0.0.1'));
is_status(200, 'the right one', '/notes',
	with($here, '-H', 'X-Forwarded-For: 198.51.100.1, 192.0.2.1, 10.0.0.1'));
is_refused(403, 'FORBIDDEN', 'another header', '/notes',
	with($here, '-H', 'Forwarded: for=192.0.2.1', '-H', 'X-Real-IP: 192.0.2.1'));

# ----- What is no request of a key's -----

ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = (SELECT sum(value) FROM apikeys.stats
		                    WHERE name ~ '^[A-Z_]+$' AND name NOT IN ('MALFORMED', 'NOT_FOUND'))
		  FROM apikeys.requests)),
	'each decision about a key is in the history');
my $before = metered();
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/big", 'X-Api-Key: ' . 'a' x 1_000_000 . "\n");
append_to_file("$dir/bytes", "X-Api-Key: \xff\xfe$alice\n");

is_status(200, 'OPTIONS', '/notes', with($alice, '-X', 'OPTIONS'));

# curl may be told, or find the connection closed while it still sends.
my $big = ask("$url/notes", '-H', "\@$dir/big");
like($big->{status}, qr/^(400|0)$/, 'a header of 1 MB');
$answers .= $big->{all};
is_status(400, 'a body that is no JSON', '/notes',
	with($alice, @json, '-d', '{"body": '));
is_status(415, 'a type of answer that PostgREST does not know', '/notes',
	with($alice, '-H', 'Accept: foo/bar'));
is_status(406, 'a schema that is not exposed', '/notes',
	with($alice, '-H', 'Accept-Profile: apikeys'));
is_status(404, 'the function itself', '/rpc/apikey_authenticate',
	with($alice, '-X', 'POST'));
is_status(405, 'a method that is none', '/notes', with($alice, '-X', 'TRACE'));
is_status(400, 'a type of body that PostgREST does not know', '/notes',
	with($alice, '-H', 'Content-Type: foo/bar', '-d', 'x'));
isnt(ask("$url/notes", '-H', "Authorization: Bearer $alice")->{status}, '200',
	'a key as a Bearer');
isnt(ask("$url/notes", '-H', "\@$dir/bytes")->{status}, '200',
	'what is no UTF-8');
is(metered(), $before, 'nothing is metered that was not decided');

# Of two headers PostgREST passes one on: that one decides, alone.
foreach my $keys ([ $alice, 'junk' ], [ 'junk', $alice ])
{
	my $answer = ask("$url/notes", map { with($_) } @$keys);
	my $body = json($answer);
	my $passed = $answer->{status} == 200;

	ok( $passed
		? $body->[0]{owner} eq 'alice'
		: ($answer->{status} == 401 && $body->{code} eq 'MALFORMED'),
		'two headers');
}

# ----- The longest race: a quota of 100 and 10,000 requests -----

my ($race_id, $race) = issue($node, 'postgres', q('r', 'racer', 'small'));
my $history = $node->safe_psql('postgres',
	'SELECT count(*) FROM apikeys.requests');
$node->safe_psql('postgres', q(ALTER SYSTEM SET log_min_duration_statement = -1));
$node->reload;
{
	my $out;
	IPC::Run::run(
		[
			'curl', '-s', '-Z', '--parallel-max', '64', '--max-time', '120',
			'-H', "X-Api-Key: $race", '-o', '/dev/null',
			'-w', '%{http_code}\n', "$url/notes?id=gt.[1-10000]"
		],
		'<', \undef, '>', \$out, '2>', "$dir/race.err");
	my %statuses;
	$statuses{$_}++ foreach split /\n/, $out;
	is_deeply(
		\%statuses,
		{ 200 => 100, 429 => 9_900 },
		'10,000 requests at once on a quota of 100 admit 100');
}
is(usage($node, 'postgres', $race_id), 100, 'the meter says so');
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) FILTER (WHERE status = 'allowed') = 100 AND count(*) = 10000
		  FROM apikeys.requests WHERE key_id = '$race_id')),
	'the history says so');
$node->safe_psql('postgres', q(ALTER SYSTEM RESET log_min_duration_statement));
$node->reload;

# ----- A role that cannot be set; a server that stops -----

$node->safe_psql(
	'postgres', q(
	CREATE ROLE web_admin;
	UPDATE apikeys.plans SET http_role = 'web_admin' WHERE id = 'slow';
	SELECT apikey_limit_delete('slow', plan_id => 'slow')));
$answer = is_status(500, 'a role that the authenticator may not set', '/notes',
	with($slow));
like($answer->{body}, qr/web_admin/, '... is said');
$node->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION apikey_authenticate FROM web_anon');
is_status(401, 'without EXECUTE nothing passes', '/notes', with($alice));

# ----- Secrets -----

stop_services();
$node->stop;
my $logged = slurp_file($node->logfile);
like($logged, qr/request\.headers|set_config/, 'the server log has requests');
unlike($logged, qr/"code":"MALFORMED"/, 'refusals are not logged');
like($answers, qr/alice/, 'there were answers');
foreach my $secret ($alice, $bob, $second, $here, $slow, $off, $race)
{
	unlike($answers, qr/\Q$secret\E/, 'no secret in an answer');
	unlike($logged, qr/\Q$secret\E/, 'no secret in the log of the server');
	unlike(slurp_file($log), qr/\Q$secret\E/, 'nor of PostgREST');
}

done_testing();
