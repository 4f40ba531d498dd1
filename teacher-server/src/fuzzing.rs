//! What fuzzers and their corpora run: any bytes are a value or an error.

use prost::Message as _;
use stillhouse_proto::v1::LabelRequest;

use crate::{
    cache,
    ensemble::{Accepts, Rule},
    settings::Limits,
    validate::Contract,
};

/// A row of the cache's disk tier.
pub fn cache_entry(bytes: &[u8]) {
    cache::fuzzed_entry(bytes);
}

/// A request, to a teacher of features and to a language model.
pub fn request(bytes: &[u8]) {
    let Ok(request) = LabelRequest::decode(bytes) else { return };
    let features = Accepts::Features { width: 3, rescale_factor: 1.0 };
    let sequences = Accepts::Sequences {
        max_length: 64,
        vocabulary: 50,
        tokenizer: [7; 32],
        every_position: true,
    };
    for accepts in [features, sequences] {
        let contract = Contract {
            accepts,
            classes: 50,
            hidden_size: 4,
            state_width: 4,
            members: 1,
            default_rule: Rule::Arithmetic,
            limits: Limits::default(),
        };
        if let Ok(accepted) = contract.accept(request.clone()) {
            assert!(accepted.cost > 0 && accepted.bytes > 0);
            drop(contract.units(&accepted.input, None));
        }
    }
}
