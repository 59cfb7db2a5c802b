# A server whose wall clock a test can set, by clock.c.

package ClockTest;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use FindBin;
use ApikeysTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(build_clock set_clock start_with_clock);

my ($clock, $library);

sub build_clock
{
	my $dir = PostgreSQL::Test::Utils::tempdir;

	($clock, $library) = ("$dir/clock", "$dir/clock.so");
	append_to_file($clock, pack('q', 0));
	return command_ok(
		[ 'gcc', '-Wall', '-Werror', '-O1', '-fPIC', '-shared', '-o', $library, "$FindBin::RealBin/clock.c" ],
		'the clock is built');
}

# Sets the server's wall clock, as an offset in seconds to the real one.
sub set_clock
{
	my ($seconds) = @_;

	open my $file, '+<', $clock or die "could not open $clock: $!";
	syswrite($file, pack('q', $seconds)) == 8 or die "could not set the clock: $!";
	close $file;
	return;
}

sub start_with_clock
{
	my ($node) = @_;

	local $ENV{LD_PRELOAD} = $library;
	local $ENV{APIKEYS_TEST_CLOCK} = $clock;

	return start_again($node);
}

1;
