//! Everything between token ids and the output projection.

use super::attention::{Attention, AttentionTape, LayerCache};
use super::config::{Rope, Spec, Task};
use super::mlp::{FeedForward, FeedForwardTape};
use super::names::SublayerNorms;
use super::pass::{Keep, Pass, Site};
use super::sublayer::{self, SublayerTape};
use super::weights::{NormWeights, Product, Projection, Source, Start, Values, add};
use crate::error::ModelError;
use crate::kernel::rope::{Layout, Rotation};
use crate::layers::{Parameter, lock};

/// Token sequences of different lengths, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) layout: Layout,
}

#[derive(Clone, Debug)]
struct Block<P, V> {
    attention: Attention<P, V>,
    attention_norms: SublayerNorms<NormWeights<V>>,
    mlp: FeedForward<P>,
    mlp_norms: SublayerNorms<NormWeights<V>>,
    rope: usize,
    number: usize,
}

/// Embeddings and blocks.
#[derive(Clone, Debug)]
pub(crate) struct Body<P, V> {
    spec: Spec,
    tokens: V,
    positions: Option<V>,
    segments: Option<V>,
    embedding_norm: Option<NormWeights<V>>,
    blocks: Vec<Block<P, V>>,
    final_norm: Option<NormWeights<V>>,
    /// Of a classifier: between a sequence's first position and the output projection.
    dense: Option<P>,
}

#[derive(Debug)]
struct BlockTape {
    attention: SublayerTape<AttentionTape>,
    mlp: SublayerTape<FeedForwardTape>,
}

#[derive(Debug)]
enum Kept {
    Input(Vec<f32>),
    All(Box<BlockTape>),
}

/// A forward pass, for the backward pass.
#[derive(Debug)]
pub(crate) struct Tape {
    /// Embeddings before their norm, where they have one.
    embedded: Option<Vec<f32>>,
    blocks: Vec<Kept>,
    rotations: Vec<Rotation>,
}

/// The last layer before the output projection, for the backward pass.
#[derive(Debug)]
pub(crate) struct TopTape {
    /// The chosen rows of the last block's output, [rows, d], after dropout.
    x: Vec<f32>,
    /// Of a classifier: the dense layer's output before its nonlinearity.
    dense: Option<Vec<f32>>,
}

impl<P: Product, V: Values> Body<P, V> {
    pub(crate) fn new<S: Source<Product = P, Values = V>>(
        source: &mut S,
        spec: &Spec,
    ) -> Result<Self, ModelError> {
        let (d, top) = (spec.hidden, spec.top_names());
        let tokens = source.values(top.tokens, &[spec.vocab, d], Start::Normal)?;
        let (mut positions, mut segments) = (None, None);
        if let Some(learned) = &spec.learned {
            positions =
                Some(source.values(top.positions, &[learned.positions, d], Start::Normal)?);
            if learned.segments > 0 {
                let shape = [learned.segments, d];
                segments = Some(source.values(top.segments, &shape, Start::Normal)?);
            }
        }
        let norm = |source: &mut S, name: &str| NormWeights::new(source, spec, name, d);
        let embedding_norm = top.embedding_norm.map(|name| norm(source, name)).transpose()?;
        let mut blocks = Vec::with_capacity(spec.layers.len());
        for (i, &layer) in spec.layers.iter().enumerate() {
            let names = spec.block_names(i);
            blocks.push(Block {
                attention: Attention::new(source, spec, i, layer, &names)?,
                mlp: FeedForward::new(source, spec, &names)?,
                attention_norms: names.attention_norms.map(|name| norm(source, &name))?,
                mlp_norms: names.mlp_norms.map(|name| norm(source, &name))?,
                rope: layer.rope,
                number: i,
            });
        }
        let final_norm = top.final_norm.map(|name| norm(source, name)).transpose()?;
        let dense = match spec.task {
            Task::Classification { .. } => Some(source.product(top.dense, [d, d], true)?),
            Task::LanguageModel { .. } => None,
        };
        Ok(Self {
            spec: spec.clone(),
            tokens,
            positions,
            segments,
            embedding_norm,
            blocks,
            final_norm,
            dense,
        })
    }

    /// Number of blocks.
    pub(crate) fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The token embedding [vocab, d].
    pub(crate) fn embedding(&self) -> &V {
        &self.tokens
    }

    /// Output of the last block, [tokens, d]. With caches, one for each block, the tokens come behind
    /// those that are in it. Ids are below the vocabulary and sequences no longer than the model's
    /// positions: the caller has checked.
    pub(crate) fn forward(
        &self,
        tokens: &Tokens<'_>,
        mut caches: Option<&mut [LayerCache]>,
        pass: &Pass,
    ) -> Result<(Vec<f32>, Tape), ModelError> {
        let positions = tokens.layout.positions();
        let ropes = self.spec.ropes.iter();
        let rotation =
            |rope: &Rope| Rotation::new(&rope.inverse_frequencies, rope.scale, positions.clone());
        let rotations: Vec<Rotation> = ropes.map(rotation).collect();
        let mut x = self.embed(tokens)?;
        let mut embedded = None;
        if let Some(norm) = &self.embedding_norm {
            let normed = norm.forward(&x)?;
            embedded = (pass.keep != Keep::Nothing).then_some(x);
            x = normed;
        }
        pass.drop_at(Site::Embedding, &mut x);
        let mut blocks = vec![];
        for (i, block) in self.blocks.iter().enumerate() {
            let cache = caches.as_mut().map(|caches| &mut caches[i]);
            if pass.keep == Keep::Inputs {
                blocks.push(Kept::Input(x.clone()));
            }
            let tape;
            let rotation = rotations.get(block.rope);
            (x, tape) = block.forward(x, &tokens.layout, rotation, cache, pass)?;
            if pass.keep == Keep::All {
                blocks.push(Kept::All(Box::new(tape)));
            }
        }
        Ok((x, Tape { embedded, blocks, rotations }))
    }

    fn embed(&self, tokens: &Tokens<'_>) -> Result<Vec<f32>, ModelError> {
        let (d, scale) = (self.spec.hidden, self.spec.embedding_scale as f32);
        let mut x = vec![0.0; tokens.ids.len() * d];
        self.tokens.with(|table| {
            for (out, &id) in x.chunks_exact_mut(d).zip(tokens.ids) {
                out.copy_from_slice(&table[id as usize * d..][..d]);
            }
        })?;
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(positions) = &self.positions {
            let rows = self.position_rows(tokens);
            positions.with(|table| {
                for (out, row) in x.chunks_exact_mut(d).zip(rows) {
                    add(out, &table[row * d..][..d]);
                }
            })?;
        }
        if let Some(segments) = &self.segments {
            segments.with(|table| x.chunks_exact_mut(d).for_each(|out| add(out, &table[..d])))?;
        }
        Ok(x)
    }

    /// Row of the table of positions for every token.
    fn position_rows(&self, tokens: &Tokens<'_>) -> Vec<usize> {
        let Some(learned) = &self.spec.learned else { return vec![] };
        let mut rows = Vec::with_capacity(tokens.ids.len());
        let mut ids = tokens.ids.iter();
        for (&length, &past) in tokens.layout.lengths.iter().zip(&tokens.layout.past) {
            let mut position = past;
            for &id in ids.by_ref().take(length) {
                match learned.padding {
                    Some(padding) if padding == id as usize => rows.push(padding),
                    _ => {
                        rows.push(learned.first + position);
                        position += 1;
                    }
                }
            }
        }
        rows
    }

    /// What the output projection sees of chosen rows `x` [rows, d] of [`Self::forward`]: positions of
    /// a language model, first positions of a classifier's sequences.
    pub(crate) fn top(
        &self,
        mut x: Vec<f32>,
        pass: &Pass,
    ) -> Result<(Vec<f32>, TopTape), ModelError> {
        if let (Some(dense), Task::Classification { activation, .. }) =
            (&self.dense, self.spec.task)
        {
            pass.drop_at(Site::HeadInput, &mut x);
            let raw = dense.apply(&x, pass.precision)?;
            let mut hidden = activation.forward(&raw);
            pass.drop_at(Site::Head, &mut hidden);
            return Ok((hidden, TopTape { x, dense: Some(raw) }));
        }
        let hidden = match &self.final_norm {
            Some(norm) => norm.forward(&x)?,
            None => x.clone(),
        };
        Ok((hidden, TopTape { x, dense: None }))
    }
}

impl<P: Product, V: Values> Block<P, V> {
    fn forward(
        &self,
        x: Vec<f32>,
        layout: &Layout,
        rotation: Option<&Rotation>,
        cache: Option<&mut LayerCache>,
        pass: &Pass,
    ) -> Result<(Vec<f32>, BlockTape), ModelError> {
        let site = (pass, Site::Attention(self.number));
        let (x, attention) = sublayer::forward(&self.attention_norms, site, x, |x| {
            self.attention.forward(x, layout, rotation, cache, pass)
        })?;
        let site = (pass, Site::FeedForward(self.number));
        let (x, mlp) = sublayer::forward(&self.mlp_norms, site, x, |x| self.mlp.forward(x, pass))?;
        Ok((x, BlockTape { attention, mlp }))
    }
}

impl Block<Projection, Parameter> {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norms = self.attention_norms.iter().chain(self.mlp_norms.iter());
        let layers = self.attention.parameters().chain(self.mlp.parameters());
        layers.chain(norms.flat_map(NormWeights::parameters))
    }

    fn backward(
        &self,
        tape: BlockTape,
        grad: Vec<f32>,
        layout: &Layout,
        rotation: Option<&Rotation>,
        pass: &Pass,
    ) -> Result<Vec<f32>, ModelError> {
        let site = (pass, Site::FeedForward(self.number));
        let grad = sublayer::backward(&self.mlp_norms, site, tape.mlp, grad, |tape, x, grad| {
            self.mlp.backward(tape, x, grad, pass)
        })?;
        let (norms, site) = (&self.attention_norms, (pass, Site::Attention(self.number)));
        sublayer::backward(norms, site, tape.attention, grad, |tape, x, grad| {
            self.attention.backward(tape, x, grad, layout, rotation, pass)
        })
    }
}

impl Body<Projection, Parameter> {
    /// Every parameter; that of a tied embedding once.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let tables = std::iter::once(&self.tokens).chain(&self.positions).chain(&self.segments);
        let norms = self.embedding_norm.iter().chain(&self.final_norm);
        let blocks = self.blocks.iter().flat_map(Block::parameters);
        let dense = self.dense.iter().flat_map(Projection::parameters);
        tables.chain(norms.flat_map(NormWeights::parameters)).chain(blocks).chain(dense)
    }

    /// The gradient of the rows that [`Self::top`] was given, from that of what it gave.
    pub(crate) fn top_backward(
        &self,
        tape: &TopTape,
        mut grad: Vec<f32>,
        pass: &Pass,
    ) -> Result<Vec<f32>, ModelError> {
        if let (Some(layer), Some(raw), Task::Classification { activation, .. }) =
            (&self.dense, &tape.dense, self.spec.task)
        {
            pass.drop_at(Site::Head, &mut grad);
            activation.backward(raw, &mut grad);
            let mut to_x = vec![0.0; tape.x.len()];
            layer.backward(&tape.x, &grad, &mut to_x, false, pass.precision)?;
            pass.drop_at(Site::HeadInput, &mut to_x);
            return Ok(to_x);
        }
        match &self.final_norm {
            Some(norm) => norm.backward(&tape.x, &grad),
            None => Ok(grad),
        }
    }

    /// Adds to the gradients of all parameters from `grad` [tokens, d], that of the last block's
    /// output.
    pub(crate) fn backward(
        &self,
        tokens: &Tokens<'_>,
        tape: Tape,
        mut grad: Vec<f32>,
        pass: &Pass,
    ) -> Result<(), ModelError> {
        let Tape { embedded, mut blocks, rotations } = tape;
        for block in self.blocks.iter().rev() {
            let rotation = rotations.get(block.rope);
            let tape = match blocks.pop() {
                Some(Kept::All(tape)) => *tape,
                Some(Kept::Input(x)) => block.forward(x, &tokens.layout, rotation, None, pass)?.1,
                None => break,
            };
            grad = block.backward(tape, grad, &tokens.layout, rotation, pass)?;
        }
        pass.drop_at(Site::Embedding, &mut grad);
        if let (Some(norm), Some(embedded)) = (&self.embedding_norm, &embedded) {
            grad = norm.backward(embedded, &grad)?;
        }
        let d = self.spec.hidden;
        if let Some(positions) = &self.positions {
            let padding = self.spec.learned.and_then(|learned| learned.padding);
            let rows = self.position_rows(tokens).into_iter();
            let rows = rows.map(|row| Some(row).filter(|_| padding != Some(row)));
            lock(positions.gradient()).add_rows(d, rows, &grad);
        }
        if let Some(segments) = &self.segments {
            lock(segments.gradient()).add_rows(d, tokens.ids.iter().map(|_| Some(0)), &grad);
        }
        let scale = self.spec.embedding_scale as f32;
        if scale != 1.0 {
            grad.iter_mut().for_each(|g| *g *= scale);
        }
        let padding = self.spec.padding;
        let rows =
            tokens.ids.iter().map(|&id| Some(id as usize).filter(|_| padding != Some(id as usize)));
        lock(self.tokens.gradient()).add_rows(d, rows, &grad);
        Ok(())
    }
}
