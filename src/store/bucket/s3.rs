//! A bucket that speaks S3.

use super::{
    object::OBJECT_BYTES_MAX,
    objects::{Listing, Objects, On, Tagged},
};
use crate::{
    config::store::{BucketConfig, PasswordSource, StoreUser},
    secret::fill_random,
    store::remote::{
        Failure,
        files::{read_password, read_pem},
        why,
    },
};
use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use object_store::{
    Certificate, ClientOptions, CredentialProvider, Error as ObjectError, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig, UpdateVersion,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    },
    list::{PaginatedListOptions, PaginatedListStore},
    path::Path,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Longest answer: a listing of 1,000 of the longest names.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Of one request within a call, which has to have time to read what became of one that was not answered.
const REQUESTS_PER_TIMEOUT: u32 = 2;
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(40);
/// What AWS's programs take credentials from: keys, a role of a workload, or of a container. Nothing else of their environment counts here.
const CREDENTIALS: [(&str, AmazonS3ConfigKey); 9] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// That of servers that have none.
const REGION_DEFAULT: &str = "us-east-1";

#[derive(Debug)]
pub(super) struct S3 {
    store: AmazonS3,
    /// For each request that is under way: a thousand accounts that are opened at once are no thousand connections.
    permits: Semaphore,
    config: BucketConfig,
}

/// The keys of a user, whose secret is read for each request, so that it can be replaced.
#[derive(Debug)]
struct User {
    key_id: String,
    secret: PasswordSource,
}

#[async_trait]
impl CredentialProvider for User {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let secret_key =
            read_password(&self.secret).map_err(|what| ObjectError::Generic { store: "S3", source: what.into() })?;
        Ok(Arc::new(AwsCredential { key_id: self.key_id.clone(), secret_key, token: None }))
    }
}

/// Takes no answer that is longer than any that there is.
#[derive(Debug)]
struct Bounded(HttpClient);

#[async_trait]
impl HttpService for Bounded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = self.0.execute(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| HttpError::new_boxed(HttpErrorKind::Decode, error))?;
        Ok(HttpResponse::from_parts(head, body.to_bytes().into()))
    }
}

#[derive(Debug)]
struct BoundedConnector;

impl HttpConnector for BoundedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Bounded(ReqwestConnector::default().connect(options)?)))
    }
}

impl S3 {
    pub(super) fn new(config: &BucketConfig) -> Result<Self, Failure> {
        let reach = &config.reach;
        let each = reach.timeout / REQUESTS_PER_TIMEOUT;
        let mut options =
            ClientOptions::new().with_allow_http(config.is_plain()).with_timeout(each).with_connect_timeout(each);
        if config.is_plain() {
            // A proxy of the environment is another machine. To none is to one that is for nobody: for no name, and for no address.
            options = options.with_proxy_url("http://127.0.0.1:1").with_proxy_excludes("*,0.0.0.0/0,::/0");
        }
        if let Some(ca) = &reach.ca {
            let pem = read_pem("store.ca", ca).map_err(Failure::Refused)?;
            let certificates = Certificate::from_pem_bundle(&pem).ok().filter(|some| !some.is_empty());
            let none = || Failure::Refused(format!("store.ca {}: no certificates, PEM, are in it", ca.display()));
            for certificate in certificates.ok_or_else(none)? {
                options = options.with_root_certificate(certificate);
            }
            options = options.with_no_system_certificates(true);
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let region = reach.region.clone().or_else(|| REGIONS.iter().find_map(|name| variable(name)));
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&config.bucket)
            .with_client_options(options)
            .with_http_connector(BoundedConnector)
            // A condition that was refused the second time says nothing of the first.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_disable_bulk_delete(true);
        builder = match (config.endpoint_url(), region) {
            (Some(endpoint), region) => {
                builder.with_endpoint(endpoint).with_region(region.unwrap_or_else(|| REGION_DEFAULT.into()))
            }
            (None, Some(region)) => builder.with_region(region),
            (None, None) => {
                let what = "no region is known: set store.region, or store.endpoint for a server that is not AWS's";
                return Err(Failure::Refused(what.into()));
            }
        };
        builder = match &reach.user {
            Some(StoreUser { name, password: Some(secret) }) => {
                builder.with_credentials(Arc::new(User { key_id: name.clone(), secret: secret.clone() }))
            }
            _ => CREDENTIALS.iter().fold(builder, |builder, (name, key)| match variable(name) {
                Some(value) => builder.with_config(*key, value),
                None => builder,
            }),
        };
        let store =
            builder.build().map_err(|error| Failure::Refused(format!("no bucket can be asked: {}", why(&error))))?;
        Ok(Self { store, permits: Semaphore::new(super::REQUESTS_AT_ONCE), config: config.clone() })
    }

    fn failure(&self, error: &ObjectError) -> Failure {
        let said = Said::of(error);
        let user =
            self.config.reach.user.as_ref().map_or("of the environment or the machine", |user| user.name.as_str());
        let refused = match (said.code.as_str(), said.status) {
            ("NoSuchBucket", _) => format!("there is no bucket {}: make it, or see store.url and store.region", self.config.bucket),
            ("InvalidAccessKeyId" | "InvalidToken" | "ExpiredToken" | "TokenRefreshRequired", _) => {
                format!("it does not know access key {user} ({said}): see store.user, or where else the key is from")
            }
            ("SignatureDoesNotMatch", _) => {
                format!("it does not take the signature of access key {user}: see where its secret is from, and store.region")
            }
            ("RequestTimeTooSkewed", _) => "the clock of this machine, or its own, is wrong by more than 15 minutes: set it".into(),
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) | (_, 301 | 307 | 308) => {
                format!("the bucket is in another region ({said}): set store.region")
            }
            (_, 401 | 403) => format!(
                "access key {user} may not do this ({said}): grant s3:GetObject and s3:PutObject on {0}/*, s3:DeleteObject on \
                 {0}/@wrapped-by/*, and s3:ListBucket on the bucket",
                self.config.namespace
            ),
            ("NotImplemented", _) | (_, 501) => format!("it has no conditional writes ({said}): {}", super::WITHOUT_CONDITIONS),
            (_, 404) => format!("it is none that speaks S3 ({said}): see store.endpoint"),
            // Whoever sends less gets it.
            (_, 408 | 429) => return Failure::Silent(format!("it has too much to do ({said})")),
            (_, 400..=499) => format!("it takes no such request ({said})"),
            (_, 500..) => return Failure::Silent(format!("it failed ({said})")),
            // Where a machine of AWS's has its role.
            _ if said.message.contains("169.254.169.254") || said.chain.contains("169.254.169.254") => {
                "no access key: set store.user and store.password_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; and no role of this \
                 machine is known"
                    .into()
            }
            _ if said.message.starts_with("store.password_") => said.message,
            _ => return Failure::Silent(format!("no answer: {}", said.message)),
        };
        Failure::Refused(refused)
    }
}

/// What an answer that is none says; never its body, which has what was signed in it.
struct Said {
    /// 0 where nothing was answered.
    status: u16,
    code: String,
    message: String,
    chain: String,
}

impl Said {
    fn of(error: &ObjectError) -> Self {
        let (mut chain, mut cause) = (error.to_string(), std::error::Error::source(error));
        while let Some(error) = cause {
            chain.push('\n');
            chain.push_str(&error.to_string());
            cause = error.source();
        }
        let between = |begin: &str, end: &str| {
            let rest = chain.split_once(begin)?.1;
            Some(rest.split_once(end)?.0.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
        };
        let status =
            chain.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse().ok()).unwrap_or_default();
        // A redirect that says not where.
        let status = if chain.contains("redirect without LOCATION") { 301 } else { status };
        let (code, message) = (between("<Code>", "</Code>").unwrap_or_default(), between("<Message>", "</Message>"));
        let message = message.unwrap_or_else(|| if status == 0 { why(error) } else { String::new() });
        Self { status, code, message, chain }
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", _) => write!(f, "status {}", self.status),
            (code, "") => f.write_str(code),
            (code, message) => write!(f, "{code}: {message}"),
        }
    }
}

#[async_trait]
impl Objects for S3 {
    async fn get(&self, name: &str) -> Result<Option<Tagged>, Failure> {
        let _permit = self.permits.acquire().await;
        let got = match self.store.get(&Path::from(name)).await {
            Ok(got) => got,
            Err(error @ ObjectError::NotFound { .. }) => {
                // Where the bucket is missing, or the server is another one, nothing was read.
                return if Said::of(&error).code == "NoSuchKey" { Ok(None) } else { Err(self.failure(&error)) };
            }
            Err(error) => return Err(self.failure(&error)),
        };
        let (size, tag) = (got.meta.size, got.meta.e_tag.clone());
        if size > OBJECT_BYTES_MAX as u64 {
            return Err(Failure::Refused(format!(
                "object {name:?} has {size} bytes, more than any of a store: let nobody else write there"
            )));
        }
        let Some(tag) = tag else {
            return Err(Failure::Refused(format!("it tells no ETag of an object: {}", super::WITHOUT_CONDITIONS)));
        };
        let bytes = got.bytes().await.map_err(|error| self.failure(&error))?;
        Ok(Some((bytes.to_vec(), tag)))
    }

    async fn put(&self, name: &str, on: On<'_>, bytes: Vec<u8>) -> Result<Option<String>, Failure> {
        let _permit = self.permits.acquire().await;
        let mode = match on {
            On::Absent => PutMode::Create,
            On::Tag(tag) => PutMode::Update(UpdateVersion { e_tag: Some(tag.into()), version: None }),
            On::Always => PutMode::Overwrite,
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(&Path::from(name), PutPayload::from(bytes), options).await {
            Ok(put) => Ok(Some(put.e_tag.unwrap_or_default())),
            // Also what S3 answers while another write is under way: 409, which object_store takes for one that was refused.
            Err(
                ObjectError::AlreadyExists { .. } | ObjectError::Precondition { .. } | ObjectError::NotModified { .. },
            ) => Ok(None),
            Err(error) => Err(self.failure(&error)),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        let _permit = self.permits.acquire().await;
        match self.store.delete(&Path::from(name)).await {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failure(&error)),
        }
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing, Failure> {
        let _permit = self.permits.acquire().await;
        let mut listing = Listing::default();
        let mut token = None;
        // A part may be empty, and not be the last.
        while listing.objects.is_empty() {
            let offset = Some(after.to_owned()).filter(|after| !after.is_empty());
            let options = PaginatedListOptions {
                offset,
                max_keys: Some(limit),
                page_token: token,
                ..PaginatedListOptions::default()
            };
            let listed =
                self.store.list_paginated(Some(prefix), options).await.map_err(|error| self.failure(&error))?;
            let objects = listed.result.objects.into_iter();
            listing.objects.extend(objects.map(|object| (object.location.to_string(), object.size)));
            listing.has_more = listed.page_token.is_some();
            token = listed.page_token;
            if token.is_none() {
                break;
            }
        }
        Ok(listing)
    }

    async fn pause(&self) {
        let mut random = [0; 2];
        // Without randomness nothing is written anyway.
        let _ = fill_random(&mut random);
        tokio::time::sleep(PAUSE_MAX * u32::from(u16::from_be_bytes(random)) / u32::from(u16::MAX)).await;
    }
}
