// SPDX-License-Identifier: Apache-2.0
//! What an image is made of, as SPDX 2.3.

use serde_json::{Value, json};

use crate::fetch::sha256;
use crate::lock::Package;

/// One of our own programs.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) sha256: String,
}

pub(crate) fn document(
    name: &str,
    version: &str,
    time: i64,
    packages: &[&Package],
    programs: &[Program],
) -> anyhow::Result<Value> {
    let created = jiff::Timestamp::from_second(time)?.to_string();
    let of_debian = packages.iter().map(|package| {
        json!({
            "SPDXID": id(&format!("{}-{}", package.name, package.architecture)),
            "name": package.name,
            "versionInfo": package.version,
            "supplier": "Organization: Debian",
            "downloadLocation": "NOASSERTION",
            "packageFileName": package.file,
            "filesAnalyzed": false,
            "checksums": [{ "algorithm": "SHA256", "checksumValue": package.sha256 }],
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator":
                    format!("pkg:deb/debian/{}@{}?arch={}", package.name, encoded(&package.version), package.architecture),
            }],
        })
    });
    let of_ours = programs.iter().map(|program| {
        json!({
            "SPDXID": id(&program.name),
            "name": program.name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "licenseDeclared": "Apache-2.0",
            "checksums": [{ "algorithm": "SHA256", "checksumValue": program.sha256 }],
        })
    });
    let packages: Vec<Value> = of_debian.chain(of_ours).collect();
    let contains = packages.iter().map(|package| {
        json!({
            "spdxElementId": "SPDXRef-DOCUMENT",
            "relationshipType": "DESCRIBES",
            "relatedSpdxElement": package["SPDXID"],
        })
    });
    let relationships: Vec<Value> = contains.collect();
    let content = sha256(serde_json::to_string(&packages)?.as_bytes());
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{name}-{version}"),
        "documentNamespace": format!("https://spdx.invalid/{name}-{version}-{content}"),
        "creationInfo": { "created": created, "creators": ["Tool: selvedge-image"] },
        "packages": packages,
        "relationships": relationships,
    }))
}

fn id(name: &str) -> String {
    let plain = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' });
    format!("SPDXRef-{}", plain.collect::<String>())
}

/// A version in a package URL.
fn encoded(version: &str) -> String {
    version.replace('%', "%25").replace('+', "%2B").replace(':', "%3A").replace('~', "%7E")
}
