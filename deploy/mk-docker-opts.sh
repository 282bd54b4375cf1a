#!/bin/sh
# Options for Docker's daemon from subnet.env, as flannel's script of this name writes them.
#
#   mk-docker-opts.sh [-f FLANNEL_ENV_FILE] [-d DOCKER_ENV_FILE] [-i] [-c] [-m] [-k COMBINED_KEY]
#     -f  what to read (/run/flannel/subnet.env)      -i  each option in a variable of its own, DOCKER_OPT_*
#     -d  what to write (/run/docker_opts.env)        -c  all in one variable; neither -i nor -c: both
#     -k  name of that variable (DOCKER_OPTS)         -m  say nothing of masquerading
set -u
usage() {
	sed -n '4,7s/^# //p' "$0" >&2
	exit 1
}
fail() {
	echo "$1" >&2
	exit 1
}

env_file=/run/flannel/subnet.env docker_env=/run/docker_opts.env key=DOCKER_OPTS
single= combined= masq=yes
while getopts f:d:icmk:h option; do
	case $option in
	f) env_file=$OPTARG ;;
	d) docker_env=$OPTARG ;;
	i) single=yes ;;
	c) combined=yes ;;
	m) masq= ;;
	k) key=$OPTARG ;;
	*) usage ;;
	esac
done
[ -n "$single$combined" ] || single=yes combined=yes

value() { # NAME: the last one counts; nothing of the file is run
	sed -n "s/^$1=//p" "$env_file" 2>/dev/null | tail -n 1 | tr -d "\"'"
}
subnet=$(value FLANNEL_SUBNET) mtu=$(value FLANNEL_MTU) ipmasq=$(value FLANNEL_IPMASQ)
bip= mask= size=
if [ -n "$subnet" ]; then
	ip route 2>/dev/null | grep -qF "${subnet%.*}.0/${subnet#*/} via" && fail "there is a route to $subnet by another host already"
	bip="--bip=$subnet"
fi
if [ -n "$ipmasq" ] && [ -n "$masq" ]; then
	case $ipmasq in
	true) mask="--ip-masq=false" ;;
	false) mask="--ip-masq=true" ;;
	*) fail "Invalid value of FLANNEL_IPMASQ: $ipmasq" ;;
	esac
fi
[ -z "$mtu" ] || size="--mtu=$mtu"

temporary=$docker_env.$$
trap 'rm -f "$temporary"' EXIT
{
	if [ -n "$single" ]; then
		[ -z "$bip" ] || echo "DOCKER_OPT_BIP=\"$bip\""
		[ -z "$mask" ] || echo "DOCKER_OPT_IPMASQ=\"$mask\""
		[ -z "$size" ] || echo "DOCKER_OPT_MTU=\"$size\""
	fi
	if [ -n "$combined" ]; then
		echo "$key=\"${bip:+ $bip}${mask:+ $mask}${size:+ $size}\""
	fi
} >"$temporary" || exit 1
mv "$temporary" "$docker_env"
