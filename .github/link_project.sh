#!/usr/bin/env bash
# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0
#
# link_project.sh URL TAG: tells in the metadata where the project lives, and has links of the README that are relative to
# its files lead there, as pages of PyPI have no files beside them. Only a release needs it: in a checkout, and on a
# fork, both are right as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
url=$1 tag=$2

sed -i "s|^license_expression = .*|&\nurl = $url\nproject_urls =\n    Source = $url\n    Changelog = $url/blob/$tag/CHANGELOG.md\n    Issues = $url/issues|" setup.cfg
sed -i -E "s@(!\[[^]]*\]\(|src=\")([^):#\"]+)([)\"])@\1${url}/raw/${tag}/\2\3@g" README.md
sed -i -E "s@\]\(([^):#]+)\)@](${url}/blob/${tag}/\1)@g" README.md
