# nginx guards a service by asking about each request: the configuration is
# that of doc/nginx.conf.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use HttpTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $nginx = tool('usr/sbin/nginx');
my $node = new_server(
	'main',
	'apikeys.trusted_proxies' => '127.0.0.1',
	'log_min_duration_statement' => '0',
	'log_parameter_max_length' => '-1');
$node->start;
install($node);
$node->safe_psql(
	'postgres', q(
	CREATE ROLE authenticator LOGIN NOINHERIT;
	CREATE ROLE web_anon;
	GRANT web_anon TO authenticator;
	SELECT apikey_grant('web_anon', 'verifier');
	SELECT apikey_plan_create('Two', 2, 'year', plan_id => 'two')));
my ($id, $key) = issue($node, 'postgres', q('k', 'ü/%', 'two'));
my ($here_id, $here) =
  issue($node, 'postgres', q('h', allowed_ips => '{127.0.0.3/32}'));
my ($off_id, $off) = issue($node, 'postgres', q('o', enabled => false));
my ($spare_id, $spare) = issue($node, 'postgres', q('spare'));
my ($post_url, $post_log) =
  start_postgrest($node, 'db-schemas' => 'apikeys_http');

my $dir = PostgreSQL::Test::Utils::tempdir . '/nginx';
my ($guard, $service) =
  map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;
my ($post) = $post_url =~ /:(\d+)$/;
my $site = slurp_file("$FindBin::RealBin/../../doc/nginx.conf");
ok($site =~ s/127\.0\.0\.1:3000/127.0.0.1:$post/, 'PostgREST');
ok($site =~ s/127\.0\.0\.1:8080/127.0.0.1:$service/, 'the service');
ok($site =~ s/listen 127\.0\.0\.1:8000/listen 127.0.0.1:$guard/, 'the guard');
mkdir $dir or die;
append_to_file("$dir/nginx.conf", <<"END");
daemon off;
worker_processes 1;
pid $dir/pid;
error_log $dir/error.log;
events { worker_connections 256; }
http {
    access_log $dir/access.log;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    $site
    server {
        listen 127.0.0.1:$service;
        default_type text/plain;
        location = /forbidden { return 403 "the service's own"; }
        location / {
            return 200 "\$request_method \$request_uri user=\$http_x_api_key_user id=\$http_x_api_key_id key=\$http_x_api_key\$http_authorization";
        }
    }
}
END
my $url = "http://127.0.0.1:$guard";
start_service("$dir/log", "http://127.0.0.1:$service/",
	$nginx, '-p', $dir, '-e', "$dir/error.log", '-c', "$dir/nginx.conf");

sub is_refused
{
	my ($status, $code, $name, @arguments) = @_;
	my $answer = ask("$url/v1/thing", @arguments);

	is($answer->{status}, $status, $name) or diag($answer->{all});
	is(json($answer)->{code}, $code, '... and why');
	is($answer->{headers}{'content-type'},
		'application/problem+json', '... as a problem');
	return $answer;
}

my $answer = is_refused(401, 'MALFORMED', 'no key');
is($answer->{headers}{'www-authenticate'},
	'ApiKey header="x-api-key"', 'how to authenticate');
is_refused(401, 'MALFORMED', 'no key', '-H', 'X-Api-Key: junk');
is_refused(403, 'DISABLED', 'a disabled key', '-H', "X-Api-Key: $off");
is_refused(401, 'MALFORMED', 'two keys', '-H', 'X-Api-Key: junk', '-H',
	"X-Api-Key: $key");

$answer = ask(
	"$url/v1/thing?q=1",
	'-H', "X-Api-Key: $key", '-H', 'X-Api-Key-User: forged',
	'-X', 'DELETE');
is($answer->{status}, 200, 'a request passes') or diag($answer->{all});
is($answer->{body}, "DELETE /v1/thing?q=1 user=%C3%BC/%25 id=$id key=",
	'the service is told who is calling, and no key');
is($answer->{headers}{'ratelimit-policy'}, '"quota";q=2;w=31536000', 'policy')
  if (gmtime)[5] % 4;
like($answer->{headers}{ratelimit}, qr/^"quota";r=1;t=\d+$/, 'state');
$answer = ask("$url/forbidden", '-H', "Authorization: Bearer $key");
is("$answer->{status} $answer->{body}", "403 the service's own",
	'the service can refuse as well; a Bearer will do');
like($answer->{headers}{ratelimit}, qr/^"quota";r=0;t=\d+$/, 'state');
$answer = is_refused(429, 'USAGE_EXCEEDED', 'the quota is used up',
	'-H', "X-Api-Key: $key");
like($answer->{headers}{'retry-after'}, qr/^\d+$/, 'when to retry');
like($answer->{headers}{ratelimit}, qr/^"quota";r=0;t=\d+$/, 'state');
is(usage($node, 'postgres', $id), 2, 'each is metered once');

# To others than nginx, as it is.
$answer = ask("$post_url/rpc/apikey_check", '-H', 'Content-Type: application/json',
	'-H', "X-Api-Key: $key", '-d', '{}');
my $problem = json($answer);
is("$answer->{status} $answer->{headers}{'content-type'}", '429 application/problem+json',
	'a refusal is a problem, said once');
is_deeply([ @$problem{qw(title status code)} ], [ 'Too Many Requests', 429, 'USAGE_EXCEEDED' ],
	'with title and status');
like(ask("$post_url/rpc/apikey_check", '-H', 'Content-Type: application/json',
		'-H', "X-Api-Key: $spare", '-d', '{}')->{headers}{'content-type'},
	qr!^application/json!, 'a VALID is none');

# The address is what nginx saw, whatever is claimed.
is_refused(403, 'FORBIDDEN', 'another address',
	'-H', "X-Api-Key: $here", '--interface', '127.0.0.2');
is_refused(403, 'FORBIDDEN', 'a forged address',
	'-H', "X-Api-Key: $here", '--interface', '127.0.0.2',
	'-H', 'X-Forwarded-For: 127.0.0.3');
is( ask("$url/x", '-H', "X-Api-Key: $here", '--interface', '127.0.0.3')->{status},
	200, 'the right address');

# A preflight of CORS carries no key: the service answers it, and nothing is
# counted. Any other OPTIONS needs one.
sub refused { return $node->safe_psql('postgres', q(SELECT sum(value) FROM apikeys.stats WHERE name ~ '^[A-Z_]+$')) }
my $before = refused();
my @preflight = ('-X', 'OPTIONS', '-H', 'Origin: https://example.com',
	'-H', 'Access-Control-Request-Method: GET', '-H', 'X-Api-Key-User: forged', '-H', "X-Api-Key: $spare");
$answer = ask("$url/v1/thing?q=1", @preflight);
is("$answer->{status} $answer->{body}", '200 OPTIONS /v1/thing?q=1 user= id= key=', 'a preflight');
is(refused(), $before, 'is not counted');
is_refused(401, 'MALFORMED', 'another OPTIONS', '-X', 'OPTIONS', '-H', 'Origin: https://example.com');
is(ask("$url/_apikey", @preflight)->{status}, 404, 'no way to the question');

# The older headers, if they are asked for.
$answer = ask("$url/x", '-H', "X-Api-Key: $key");
is($answer->{headers}{'x-ratelimit-limit'}, undef, 'no older headers');
$node->safe_psql('postgres', 'ALTER ROLE authenticator SET apikeys.legacy_rate_headers = on');
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE usename = 'authenticator'));
ok( until_true(sub { return ask("$url/x", '-H', "X-Api-Key: $spare")->{status} == 200 }), 'PostgREST has connected anew');
$node->safe_psql('postgres', "SELECT apikey_usage_adjust('$id', -1)");
foreach my $status (200, 429)
{
	$answer = ask("$url/x", '-H', "X-Api-Key: $key");
	is(join(' ', $answer->{status}, map { $answer->{headers}{"x-ratelimit-$_"} // '-' } qw(limit remaining)),
		"$status 2 0", 'the older headers');
	like($answer->{headers}{'x-ratelimit-reset'}, qr/^\d{10}$/, 'with the reset');
}

# What the client gets wrong is no fault of the server's.
is( ask("$url/x", '-H', "X-Api-Key: $here", '--interface', '127.0.0.3', '-H', "X-Forwarded-For: \xff, 192.0.2.1")->{status},
	200, 'an address that is no text');
is_refused(403, 'FORBIDDEN', 'which is not believed',
	'-H', "X-Api-Key: $here", '--interface', '127.0.0.2', '-H', "X-Forwarded-For: \xff, 127.0.0.3");
is_refused(401, 'MALFORMED', 'a key that is no text', '-H', "X-Api-Key: \xff");
is_refused(401, 'MALFORMED', 'a token that is no text', '-H', "Authorization: Bearer \xff");
is( ask("$url/\xff?q=\xff", '-H', "X-Api-Key: $here", '--interface', '127.0.0.3')->{status},
	200, 'a path that is no text');

# User ids that a header does not hold as they are, and as many limits as there
# can be.
$node->safe_psql(
	'postgres', q(
	SELECT apikey_limit_set(n || repeat('ü', 30), 1000, '1 hour', plan_id => 'rates'),
	       apikey_limit_set(n || repeat('ö', 30), 1000, '1 hour', user_id => ' spaced ')
	  FROM (SELECT apikey_plan_create('Rates', plan_id => 'rates'), apikey_user_create(' spaced ')) p,
	       generate_series(1, 8) n));
my ($spaced_id, $spaced) = issue($node, 'postgres', q('spaced', ' spaced ', 'rates'));
$node->safe_psql('postgres',
	"SELECT apikey_limit_set(n || repeat('ä', 30), 1000, '1 hour', key_id => '$spaced_id') FROM generate_series(1, 8) n");
$answer = ask("$url/x", '-H', "X-Api-Key: $spaced");
is($answer->{body}, "GET /x user=%20spaced%20 id=$spaced_id key=", 'a user between spaces')
  or diag($answer->{all});
is(() = $answer->{headers}{ratelimit} =~ /r=\d+/g, 24, 'and all limits');

is(ask("$url/_apikey", '-H', "X-Api-Key: $here")->{status},
	404, 'the question itself is internal');

ok( $node->poll_query_until(
		'postgres', qq(
		SELECT string_agg(concat_ws(' ', endpoint, method, code, ip_address), E'\n' ORDER BY timestamp) = E'/v1/thing DELETE VALID 127.0.0.1\n/forbidden GET VALID 127.0.0.1\n/v1/thing GET USAGE_EXCEEDED 127.0.0.1'
		  FROM apikeys.requests WHERE key_id = '$id' AND endpoint NOT IN ('/rpc/apikey_check', '/x'))),
	'the history has path and method of the request, without its query');

# PostgREST gone: nothing passes.
$node->stop;
is(ask("$url/x", '-H', "X-Api-Key: $here")->{status},
	500, 'no decision, no request');
stop_services();
foreach my $file ($node->logfile, $post_log, glob "$dir/*")
{
	next unless -f $file;
	unlike(slurp_file($file), qr/\Q$_\E/, 'no secret in a log')
	  foreach $key, $here, $off, $spaced, $spare;
}

done_testing();
