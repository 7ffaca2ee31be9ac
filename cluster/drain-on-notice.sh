#!/bin/sh
# Tell Ray when the cloud is about to take this spot machine away, so that its tiles go elsewhere before it is gone.
#   drain-on-notice.sh aws|gcp HEAD_IP:6379
# Runs until then; the cluster launcher files start it on every worker.
set -eu

cloud=${1:?"usage: $0 aws|gcp HEAD_IP:PORT"}
head=${2:?"usage: $0 aws|gcp HEAD_IP:PORT"}
# Seconds: AWS warns 120 s ahead, Google Cloud 30 s. Asking is one local request.
every=${DRAIN_POLL_S:-5}

# Whether the cloud's metadata service says that this machine will be taken.
noticed() {
    case $cloud in
    aws)
        session=$(curl --silent --fail --max-time 2 --request PUT \
            --header "X-aws-ec2-metadata-token-ttl-seconds: 60" \
            http://169.254.169.254/latest/api/token) || return 1
        # 404 until there is a notice.
        curl --silent --fail --max-time 2 --output /dev/null \
            --header "X-aws-ec2-metadata-token: $session" \
            http://169.254.169.254/latest/meta-data/spot/instance-action
        ;;
    gcp)
        [ "$(curl --silent --fail --max-time 2 --header "Metadata-Flavor: Google" \
            http://metadata.google.internal/computeMetadata/v1/instance/preempted)" = TRUE ]
        ;;
    esac
}

case $cloud in
aws) left=110 ;;
gcp) left=25 ;;
*)
    echo "$0: $cloud: unknown cloud; give aws or gcp" >&2
    exit 2
    ;;
esac

until noticed; do
    sleep "$every"
done
export RAY_ADDRESS="$head" # where the command asks which node it runs on
exec ray drain-node --address "$head" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "spot machine taken by $cloud" --deadline-remaining-seconds "$left"
